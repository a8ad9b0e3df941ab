"""`gft`, the command line: validate, plan, render, inspect, run and watch a GemmaFineTune."""
