"""`python -m kgrank`, and `torchrun … -m kgrank`: the command line."""

from kgrank.serving.cli import main

if __name__ == "__main__":
    main()
