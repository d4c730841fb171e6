"""The kinds of things that a scene can show.

Each kind is one emoji of a single code point, told apart from all others at 20 pixels.
Look-alikes were dropped after looking at a contact sheet: tomato (apple), American football
(peanut), cookie (pizza), police car (taxi), pear (avocado) and others; so were things that English
does not count (bread, cheese, trousers, broccoli).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of object: its glyph and how English names one and several of it."""

    glyph: str
    singular: str
    plural: str

    @property
    def article(self) -> str:
        """``a`` or ``an``; ``unicorn`` is the one name that begins with a spoken consonant."""
        return "an" if self.singular[0] in "aeiou" and self.singular != "unicorn" else "a"


# The order is part of the world: a kind's index is its class in every trained head.
_NAMES = """
🐱 cat, 🐶 dog, 🐭 mouse, 🦊 fox, 🐻 bear, 🐼 panda, 🐨 koala, 🐯 tiger, 🦁 lion, 🐷 pig, 🐸 frog,
🐵 monkey, 🐧 penguin, 🐦 bird, 🦆 duck, 🦅 eagle, 🦉 owl, 🦇 bat, 🦄 unicorn, 🐝 bee,
🐛 caterpillar, 🦋 butterfly, 🐌 snail, 🐞 ladybird, 🐜 ant, 🦂 scorpion, 🐢 turtle, 🐍 snake,
🦖 dinosaur, 🐙 octopus, 🦑 squid, 🦀 crab, 🐠 fish, 🐬 dolphin, 🐳 whale, 🦈 shark, 🐊 crocodile,
🦓 zebra, 🦍 gorilla, 🐘 elephant, 🐪 camel, 🦒 giraffe, 🐄 cow, 🐑 sheep, 🐓 rooster, 🦚 peacock,
🦜 parrot, 🦢 swan, 🦩 flamingo, 🐇 rabbit, 🦔 hedgehog, 🍎 apple, 🍊 orange, 🍋 lemon, 🍌 banana,
🍉 melon, 🍓 strawberry, 🍍 pineapple, 🥥 coconut, 🍆 aubergine, 🥕 carrot, 🧅 onion, 🍄 mushroom,
🥐 croissant, 🥚 egg, 🍔 burger, 🍕 pizza, 🥪 sandwich, 🍩 doughnut, 🎂 cake, 🧁 cupcake,
🍭 lollipop, ☕ cup, ⚽ football, 🏀 basketball, 🎯 dartboard, 🎲 dice, 🧸 teddy bear, 🎨 palette,
🎸 guitar, 🎺 trumpet, 🥁 drum, 🎻 violin, 🚗 car, 🚕 taxi, 🚌 bus, 🚑 ambulance, 🚜 tractor,
🚲 bicycle, 🛵 scooter, 🚂 train, 🚀 rocket, ⛵ boat, 🚢 ship, 🛸 saucer, 🎈 balloon, 🎁 present,
🏠 house, 🏰 castle, ⛺ tent, 🌲 tree, 🌵 cactus, 🌻 sunflower, 🌹 rose, 🌷 tulip, ⌚ watch,
💻 laptop, 📷 camera, 📺 television, 📻 radio, 💡 lamp, 🕯 candle, 🔑 key, 🔨 hammer, 🪑 chair,
🚪 door, ☂ umbrella, 👑 crown, 🎩 hat, 👟 shoe, 👗 dress, 💎 diamond, 🔔 bell, 🎒 backpack,
⚓ anchor, 🧲 magnet, 🪁 kite, 🪣 bucket, ⏰ clock, ⭐ star, 💀 skull, 👻 ghost, 🤖 robot, 👽 alien,
🎃 pumpkin, ☎ telephone, 🏆 trophy, ⌛ hourglass, 🧭 compass, 🛡 shield, 💣 bomb, 🔭 telescope
"""

_IRREGULAR = {
    "mouse": "mice",
    "fox": "foxes",
    "butterfly": "butterflies",
    "octopus": "octopuses",
    "fish": "fish",
    "sheep": "sheep",
    "strawberry": "strawberries",
    "sandwich": "sandwiches",
    "dice": "dice",
    "bus": "buses",
    "cactus": "cactuses",
    "watch": "watches",
    "dress": "dresses",
    "hourglass": "hourglasses",
    "compass": "compasses",
}


def _kinds() -> tuple[Kind, ...]:
    kinds = []
    for entry in _NAMES.split(","):
        glyph, name = entry.strip().split(" ", 1)
        kinds.append(Kind(glyph, name, _IRREGULAR.get(name, name + "s")))
    return tuple(kinds)


KINDS: tuple[Kind, ...] = _kinds()
"""All kinds; a scene names them by index."""

KIND_BY_NAME: dict[str, int] = {
    name: index for index, kind in enumerate(KINDS) for name in (kind.singular, kind.plural)
}
"""Index of a kind by its singular or its plural name."""
