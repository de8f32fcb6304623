"""`python -m vqdm_train` is the `vqdm` command; torchrun starts it by this name."""

from vqdm_train.cli import main

if __name__ == "__main__":
    main(prog_name="vqdm")
