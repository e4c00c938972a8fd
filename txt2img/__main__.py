"""python -m txt2img, and the command txt2img."""

import sys


def main() -> None:
    """Run the command line in a worker with --keep-alive, else in this process.

    A worker is tried before typer is imported, which takes longer than reaching it.
    """
    try:
        from txt2img.cli.worker.client import run_in_worker

        code = run_in_worker(sys.argv[1:])
        if code is None:
            from txt2img.cli import app

            code = app.run(sys.argv[1:])
    except ImportError as error:  # typer, without which no error is reported
        from txt2img.cli.terminal.console import log
        from txt2img.system.missing import explain

        line, code = explain(error)
        log(f"Error: {line}")
    sys.exit(code)


if __name__ == "__main__":
    main()
