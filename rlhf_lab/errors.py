"""The one exception a person is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: an input, a path, the machine.

    The message is one line that says what is wrong, where (file, row, column) and what to do.
    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what.rstrip(".")]
        if where:
            parts[0] = f"{where}: {parts[0]}"
        if fix:
            parts.append(fix.rstrip("."))
        super().__init__(" ".join(f"{part}.".replace("\n", " ") for part in parts))
