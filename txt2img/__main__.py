"""python -m txt2img: the same as the command txt2img."""

import sys


def main() -> None:
    """The command txt2img: by a warm worker if one is wanted, else in this process.

    A worker is asked before typer is imported, which would take longer than all the rest.
    """
    from txt2img.cli.worker.client import run_in_worker

    code = run_in_worker(sys.argv[1:])
    if code is None:
        from txt2img.cli import app

        code = app.run(sys.argv[1:])
    sys.exit(code)


if __name__ == "__main__":
    main()
