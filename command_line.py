"""What the commands of the package share. Imports nothing heavy, so that `--help` answers at once."""

import argparse


class CommandParser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")
