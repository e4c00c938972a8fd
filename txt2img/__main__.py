"""python -m txt2img: the same as the command txt2img."""

import os
import sys


def main() -> None:
    """The command txt2img: by a warm worker if one is wanted, else in this process.

    A worker is asked before typer is imported, which would take longer than all the rest.
    """
    arguments = sys.argv[1:]
    if os.environ.get("TXT2IMG_WARM") or any(word.startswith("--warm") for word in arguments):
        from txt2img.cli.warm import by_worker

        code = by_worker(arguments)
        if code is not None:
            sys.exit(code)
    from txt2img.cli import app

    sys.exit(app.run(arguments))


if __name__ == "__main__":
    main()
