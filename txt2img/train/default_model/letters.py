"""The letters A to Z as white strokes on a tile, in each style: no icon set draws them all."""

STROKES = {
    "a": "M26 78 50 22 74 78M35 58H65",
    "b": "M32 22V78H54A16 14.5 0 0 0 54 49H32H51A14 13.5 0 0 0 51 22H32",
    "c": "M73 34A27 28 0 1 0 73 66",
    "d": "M30 22V78H44A28 28 0 0 0 44 22Z",
    "e": "M68 22H34V78H68M34 50H62",
    "f": "M68 22H34V78M34 50H62",
    "g": "M73 34A27 28 0 1 0 75 54H54",
    "h": "M29 22V78M71 22V78M29 50H71",
    "i": "M50 22V78",
    "j": "M62 22V60A16 18 0 0 1 31 62",
    "k": "M32 22V78M70 22 34 53M46 44 71 78",
    "l": "M36 22V78H68",
    "m": "M22 78V22L50 60 78 22V78",
    "n": "M28 78V22L72 78V22",
    "o": "M50 22A27 28 0 1 0 50 78A27 28 0 1 0 50 22",
    "p": "M33 78V22H53A16 16 0 0 1 53 54H33",
    "q": "M50 22A27 28 0 1 0 50 78A27 28 0 1 0 50 22M58 62 76 82",
    "r": "M33 78V22H53A15.5 15.5 0 0 1 53 53H33M53 53 70 78",
    "s": "M69 32C60 18 32 20 33 36C34 53 68 46 68 64C68 82 38 82 30 68",
    "t": "M26 22H74M50 22V78",
    "u": "M28 22V56A22 22 0 0 0 72 56V22",
    "v": "M26 22 50 78 74 22",
    "w": "M18 22 34 78 50 32 66 78 82 22",
    "x": "M28 22 72 78M72 22 28 78",
    "y": "M26 22 50 52 74 22M50 52V78",
    "z": "M29 22H71L29 78H71",
}
STROKE = 'fill="none" stroke-linecap="round" stroke-linejoin="round"'
GRADIENT = (
    '<defs><linearGradient id="g" x2="0" y2="1"><stop stop-color="#58a8ff"/>'
    '<stop offset="1" stop-color="#1f5fd0"/></linearGradient>'
    '<linearGradient id="h" x2="0" y2="1"><stop stop-color="#a8d8ff"/>'
    '<stop offset="0.5" stop-color="#58a8ff" stop-opacity="0"/></linearGradient></defs>'
)
TILES = {  # style → what lies below the letter, and the width of its strokes
    "fluent": (
        f'{GRADIENT}<rect x="8" y="8" width="84" height="84" rx="18" fill="url(#g)"/>'
        '<rect x="10" y="10" width="80" height="80" rx="16" fill="none" stroke="url(#h)" '
        'stroke-width="4"/>',
        11.0,
    ),
    "flat": ('<rect x="6" y="6" width="88" height="88" rx="14" fill="#0074ba"/>', 11.0),
    "noto": (
        '<rect x="3" y="6" width="94" height="91" rx="12" fill="#2f7889"/>'
        '<rect x="3" y="3" width="94" height="89" rx="12" fill="#40c0e7"/>',
        12.0,
    ),
    "twemoji": ('<rect width="100" height="100" rx="11" fill="#3b88c3"/>', 12.0),
}
CREDIT = "letters: drawn for txt2img; licence Apache-2.0"


def letter_svg(letter: str, style: str, margin: float) -> str:
    """One letter, a to z, in a style, with the style's margin around it."""
    tile, width = TILES[style]
    pad = 100 * margin
    shade = (
        f'<path d="{STROKES[letter]}" transform="translate(1.5 2.5)" {STROKE} stroke="#1747a0" '
        f'stroke-width="{width}" opacity="0.6"/>'
        if style == "fluent"
        else ""
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="{-pad:g} {-pad:g} {100 + 2 * pad:g} {100 + 2 * pad:g}">{tile}'
        f'<g transform="translate(50 50) scale(0.8) translate(-50 -50)">{shade}'
        f'<path d="{STROKES[letter]}" {STROKE} stroke="#fff" stroke-width="{width}"/></g></svg>'
    )
