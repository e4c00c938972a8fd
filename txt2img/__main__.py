"""python -m txt2img: the same as the command txt2img."""

from txt2img.cli.app import main

if __name__ == "__main__":
    main()
