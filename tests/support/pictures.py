"""Pictures of coloured shapes with rows that name the colour: what a tiny PaliGemma can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
PREFIX = "name the colour"


def write_shapes(folder: Path, rows: int, seed: int) -> Path:
    """A jsonl file of `rows` rows {file, colour} and, in a folder beside it, their pictures: a shape of some size,
    place and shade on grey, all of it by the seed."""
    chance = random.Random(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        name = list(COLOURS)[number % len(COLOURS)]
        shade = tuple(max(0, min(255, part + chance.randint(-25, 25))) for part in COLOURS[name])
        grey = chance.randint(90, 200)
        picture = Image.new("RGB", (chance.randint(40, 90), chance.randint(40, 90)), (grey, grey, grey))
        width, height = picture.size
        left, top = chance.randint(0, width // 4), chance.randint(0, height // 4)
        box = (left, top, left + chance.randint(width // 2, 3 * width // 4), top + chance.randint(height // 2, height))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if chance.random() < 0.5 else draw.rectangle)(box, fill=shade)
        file = f"pictures/{number:03d}.{'png' if number % 2 else 'jpg'}"
        picture.save(folder / file)
        lines.append(json.dumps({"file": file, "colour": name}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines))
    return path
