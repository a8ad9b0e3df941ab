"""Files that tests read, and the tools that write them."""
