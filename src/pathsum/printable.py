"""Words and paths of a user's, on their way to a terminal."""


def printable(text: str) -> str:
    """The text on one line; what a terminal would act upon or not show is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
