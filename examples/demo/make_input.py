"""Draws the pictures and writes the orders under input/. They are committed; this is where they came from.

python -m examples.demo.make_input
"""

from __future__ import annotations

import csv
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image, ImageDraw

INPUT = Path(__file__).parent / "input"
WIDTH, HEIGHT = 480, 320
Colour = tuple[int, int, int]


def main() -> None:
    pictures = INPUT / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    landscape(
        pictures / "dawn.png", top=(58, 66, 120), bottom=(250, 176, 120), hills=(70, 50, 90), sun=(0.72, 0.44, 26, (255, 226, 170)), seed=3
    )
    landscape(
        pictures / "noon.png", top=(64, 140, 220), bottom=(200, 230, 250), hills=(52, 120, 70), sun=(0.25, 0.2, 22, (255, 250, 215)), seed=8
    )
    landscape(
        pictures / "dusk.png", top=(40, 28, 70), bottom=(230, 96, 70), hills=(36, 24, 50), sun=(0.5, 0.5, 34, (255, 190, 110)), seed=21
    )
    landscape(
        pictures / "night.png",
        top=(6, 8, 26),
        bottom=(28, 36, 74),
        hills=(10, 12, 28),
        sun=(0.8, 0.2, 18, (236, 238, 244)),
        seed=5,
        stars=160,
    )
    julia(pictures / "coral.png", -0.8 + 0.156j, (255, 120, 90))
    julia(pictures / "fern.png", -0.4 + 0.6j, (90, 200, 110))
    julia(pictures / "frost.png", 0.285 + 0.01j, (120, 190, 255))
    julia(pictures / "ember.png", -0.70176 - 0.3842j, (255, 170, 60))
    sea(pictures / "bay.png", (30, 90, 130), (160, 214, 224), seed=2)
    sea(pictures / "storm.png", (30, 40, 52), (120, 134, 146), seed=9)
    vegetable(pictures / "celeriac.png")
    chequers(pictures / "tiles.png")
    whole = (pictures / "tiles.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole[: len(whole) // 3])  # as from an upload that was cut off
    orders(INPUT / "orders.csv", rows=4000)


def landscape(
    path: Path, *, top: Colour, bottom: Colour, hills: Colour, sun: tuple[float, float, int, Colour], seed: int, stars: int = 0
) -> None:
    noise = random.Random(seed)
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    for y in range(HEIGHT):
        draw.line([(0, y), (WIDTH, y)], fill=_between(top, bottom, y / HEIGHT))
    for _ in range(stars):
        draw.point((noise.randrange(WIDTH), noise.randrange(HEIGHT * 2 // 3)), fill=(220, 220, 235))
    left, upper, radius, colour = int(sun[0] * WIDTH), int(sun[1] * HEIGHT), sun[2], sun[3]
    draw.ellipse([left - radius, upper - radius, left + radius, upper + radius], fill=colour)
    for ridge in range(4):
        waves = [(noise.uniform(0.5, 5), noise.uniform(0, 7), noise.uniform(4, 22)) for _ in range(6)]
        base = HEIGHT * (0.55 + 0.12 * ridge)
        line = [(px, base + sum(a * math.sin(f * px / WIDTH * 6.28 + p) for f, p, a in waves) / 2) for px in range(WIDTH + 1)]
        draw.polygon([(0, HEIGHT), *line, (WIDTH, HEIGHT)], fill=_between(bottom, hills, 0.4 + 0.2 * ridge))
    image.save(path, optimize=True)


def julia(path: Path, constant: complex, colour: Colour) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    pixels = image.load()
    assert pixels is not None
    for py in range(HEIGHT):
        for px in range(WIDTH):
            z = complex((px - WIDTH / 2) / 150, (py - HEIGHT / 2) / 150)
            steps = 0
            while abs(z) < 2 and steps < 48:
                z = z * z + constant
                steps += 1
            pixels[px, py] = _between((12, 12, 24), colour, (steps / 48) ** 0.6)
    image.save(path, optimize=True)


def sea(path: Path, deep: Colour, light: Colour, *, seed: int) -> None:
    noise = random.Random(seed)
    image = Image.new("RGB", (WIDTH, HEIGHT), light)
    draw = ImageDraw.Draw(image)
    for y in range(HEIGHT):
        draw.line([(0, y), (WIDTH, y)], fill=_between(light, deep, max(0.0, (y - HEIGHT * 0.45) / (HEIGHT * 0.55)) ** 0.7))
    for row in range(30):
        level = HEIGHT * 0.47 + row * row * 0.19
        for _ in range(26 - row // 2):
            x, length = noise.uniform(-20, WIDTH), noise.uniform(6, 14 + row * 2)
            draw.line(
                [(x, level), (x + length / 2, level - 1 - row / 12), (x + length, level)],
                fill=_between(deep, light, noise.uniform(0.2, 0.9)),
            )
    draw.polygon([(300, 138), (372, 138), (360, 152), (312, 152)], fill=(90, 50, 40))
    draw.polygon([(334, 132), (334, 70), (368, 130)], fill=(244, 240, 230))
    image.save(path, optimize=True)


def vegetable(path: Path) -> None:
    noise = random.Random(1)
    image = Image.new("RGB", (WIDTH, HEIGHT), (238, 232, 214))
    draw = ImageDraw.Draw(image)
    for angle in range(-60, 61, 12):
        x, y = 240 + 150 * math.sin(math.radians(angle)), 150 - 130 * math.cos(math.radians(angle))
        draw.line([(240, 130), (x, y)], fill=(110, 160, 70), width=7)
        draw.ellipse([x - 20, y - 12, x + 20, y + 16], fill=(70, 140, 60))
    draw.ellipse([145, 105, 335, 285], fill=(206, 184, 140), outline=(140, 112, 76), width=3)
    for _ in range(260):
        x, y = noise.gauss(240, 42), noise.gauss(200, 38)
        draw.ellipse([x, y, x + noise.uniform(1, 5), y + noise.uniform(1, 3)], fill=(170, 142, 100))
    for _ in range(40):
        x = noise.uniform(180, 300)
        draw.line([(x, 268), (x + noise.uniform(-26, 26), 285 + noise.uniform(0, 30))], fill=(150, 122, 84), width=2)
    image.save(path, optimize=True)


def chequers(path: Path) -> None:
    noise = random.Random(4)
    image = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(image)
    for x in range(0, WIDTH, 32):
        for y in range(0, HEIGHT, 32):
            shade = noise.randrange(120, 250)
            draw.rectangle([x, y, x + 30, y + 30], fill=(shade, noise.randrange(90, 200), 255 - shade // 2))
    image.save(path, optimize=True)


def orders(path: Path, *, rows: int) -> None:
    noise = random.Random(1995)
    goods = [("VEG-01", "Celeriac, 1 kg", "2.40"), ("VEG-02", "Celery", "1.95"), ("VEG-03", "Fennel", "2.10"), ("VEG-04", "Parsnip, 500 g", "1.60"),
             ("OIL-01", "Rapeseed oil", "6.90"), ("KIT-01", "Peeler", "9.50"), ("KIT-02", "Cast-iron pan", "48.00"), ("BOK-01", "Roots: a cookbook", "24.90")]  # fmt: skip
    customers = [
        f"{first} {last}"
        for first in ("Asha", "Bikram", "Chloé", "Dmitri", "Esra", "Félix", "Greta", "Hana", "Ívar", "Jun")
        for last in ("Adhikari", "Berg", "Costa", "Drăgan", "Endo", "Šimić")
    ]
    countries = ["NP", "DE", "FR", "IS", "JP", "PT", "RO", "TR"]
    moment = datetime(2026, 1, 1, 6, 0, tzinfo=UTC)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["order", "ordered_at", "customer", "country", "sku", "product", "quantity", "unit_price"])
        for number in range(1, rows + 1):
            moment += timedelta(minutes=noise.randrange(1, 110))
            customer = noise.choice(customers)
            sku, product, price = noise.choice(goods)
            table.writerow(
                [
                    f"A{number:05d}",
                    moment.isoformat(),
                    customer,
                    countries[hash_of(customer) % len(countries)],
                    sku,
                    product,
                    noise.randrange(1, 9),
                    price,
                ]
            )


def hash_of(text: str) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(text))


def _between(first: Colour, second: Colour, share: float) -> Colour:
    share = min(1.0, max(0.0, share))
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
