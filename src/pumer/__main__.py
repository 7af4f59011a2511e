"""The `pumer` command, and `python -m pumer`, as `torchrun` and `accelerate launch` start it."""

from pumer.utils.processes import own_interrupts


def main() -> None:
    """Entry point; what Ctrl-C does is settled before anything else is imported."""
    own_interrupts()
    from pumer.cli import main as command

    command()


if __name__ == "__main__":
    main()
