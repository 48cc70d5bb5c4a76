"""Every error this library raises on purpose.

Each is also a ``ValueError``, ``TypeError`` or ``RuntimeError``, so that callers need not import it.
"""


class InvalidValueError(ValueError):
    """An argument has a value that breaks a rule; the message names function, argument, rule and value.

    Attributes:
        function: Public function that was called.
        argument: Name of the offending argument.
        sample: Index in the batch, or ``None`` where the rule is not about one sample.
    """

    def __init__(self, function: str, argument: str, rule: str, got: object, sample: int | None = None):
        where = "" if sample is None else f" at sample {sample}"
        super().__init__(f"{function}: {argument} must {rule}; got {got}{where}")
        self.function = function
        self.argument = argument
        self.sample = sample


class InvalidTypeError(TypeError):
    """An argument has a type, dtype or device that is not accepted."""

    def __init__(self, function: str, argument: str, rule: str, got: object):
        super().__init__(f"{function}: {argument} must {rule}; got {got}")
        self.function = function
        self.argument = argument


class ImplementationError(RuntimeError):
    """The implementation asked for by ``impl=`` cannot run this call."""


class GradientConsumedError(RuntimeError):
    """A backward was asked of a loss whose logits, which it was to overwrite, have been written to before."""


class NotDifferentiableError(RuntimeError):
    """A derivative was asked for that this implementation does not have."""


class ProcessesError(RuntimeError):
    """Processes that compute a loss together could not: one has gone, or did not come before the time-out."""


class GraphFileError(ValueError):
    """A file of a graph is malformed; the message names the file, the line or the byte, the rule and what is there.

    Attributes:
        path: The file.
        place: ``"line 3"``, ``"byte 20"``.
    """

    def __init__(self, path: str, place: str, rule: str, got: object):
        super().__init__(f"{path}, {place}: must {rule}; got {got}")
        self.path = path
        self.place = place


class CommandError(ValueError):
    """A command cannot do what was asked for: a file, a text, an option or a package has to be put right."""


class FrameworkMissingError(ModuleNotFoundError):
    """The framework of a front end is not installed; the message names the extra that brings it."""


class FrameworkVersionError(ImportError):
    """The framework of a front end is a version that lacks what pathsum uses of it."""


def name_extra(error: ModuleNotFoundError, package: str, part: str | None = None) -> ModuleNotFoundError:
    """What to raise for a module that a part of pathsum did not find: where it is the part's package, with the cure."""
    if error.name != package:
        return error
    part = part or package
    return FrameworkMissingError(f"pathsum.{part} needs {package}: pip install 'pathsum[{part}]'", name=package)
