"""What the commands print on. Words and paths of a user's are never read as markup."""

from __future__ import annotations

from rich.console import Console as RichConsole


class Console(RichConsole):
    """Standard output; a pipe has no width and gets one that tables fit in."""

    def __init__(self, *, width_of_pipe: int | None = None, quiet: bool = False) -> None:
        super().__init__(markup=False, emoji=False, quiet=quiet)
        if width_of_pipe is not None and not self.is_terminal:
            self.width = width_of_pipe

    def on_broken_pipe(self) -> None:
        """Without it rich would end the process on its own; the command has a place for what goes wrong."""
        raise BrokenPipeError
