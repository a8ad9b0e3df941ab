"""The machine's peak: matrix products of 2048 x 2048, one answer per line on stdin, in FLOPs per processor second."""

from __future__ import annotations

import json
import sys
import time

SIZE = 2048
PRODUCTS = 6


def main() -> None:
    """Measures one precision each time that a line names it (`bf16`, `fp32`)."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for line in sys.stdin:
        left, right = (torch.randn(SIZE, SIZE).to(types[line.strip()]) for _ in range(2))
        left @ right
        began = time.process_time()
        for _ in range(PRODUCTS):
            left @ right
        print(json.dumps(2 * SIZE**3 * PRODUCTS / (time.process_time() - began)), flush=True)


if __name__ == "__main__":
    main()
