"""`python -m pumer`, as `torchrun` and `accelerate launch` start it."""

from pumer.cli import main

if __name__ == "__main__":
    main()
