"""Checks at the doors of the drop-ins, read off the annotations of their functions.

A peer's option that is no number, no flag or no text breaks it somewhere inside, or is taken for something else. Here
an argument that is annotated as an ``int``, a ``float``, a ``bool``, a ``str`` or a ``Sequence[int]`` is one when the
function begins, or the error names it. What values mean is for the function to say.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from pathsum.errors import InvalidTypeError, InvalidValueError

Function = TypeVar("Function", bound=Callable[..., Any])
# Given the names of function and argument and its value: the value as the function takes it.
Rule = Callable[[str, str, Any], Any]


def flag(function: str, argument: str, value: Any) -> bool:
    """A bool, of Python's or NumPy's; 0 and 1 are bools too, as they are to peers."""
    if not isinstance(value, (bool, np.bool_, Integral)) or value not in (0, 1):
        raise InvalidTypeError(function, argument, "be a bool", _kind(value))
    return bool(value)


def integer(function: str, argument: str, value: Any) -> int:
    if not isinstance(value, Integral):
        raise InvalidTypeError(function, argument, "be an int", _kind(value))
    return int(value)


def number(function: str, argument: str, value: Any) -> float:
    """Any real number but NaN."""
    if not isinstance(value, Real):
        raise InvalidTypeError(function, argument, "be a number", _kind(value))
    try:
        found = float(value)
    except OverflowError:  # an int beyond all floats
        found = math.nan
    if math.isnan(found):
        raise InvalidValueError(function, argument, "be a number", value)
    return found


def text(function: str, argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(function, argument, "be a text", _kind(value))
    return value


def integers(function: str, argument: str, value: Any) -> list[int]:
    """A sequence of ints, of whatever kind (those of configurations too), as a list."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidTypeError(function, argument, "be a list of ints", _kind(value))
    return [integer(function, argument, entry) for entry in value]


def array(function: str, argument: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """What a framework's ``convert`` makes an array of, an array."""
    if isinstance(value, np.ma.MaskedArray):  # what the mask hides would be read
        raise InvalidTypeError(function, argument, "have no mask", "a NumPy MaskedArray")
    try:
        return convert(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidTypeError(function, argument, "be an array, or what one is made of", _kind(value)) from error


def _kind(value: Any) -> str:
    return type(value).__name__


RULES: dict[str, Rule] = {
    "bool": flag,
    "int": integer,
    "float": number,
    "str": text,
    "TorchImpl": text,
    "JAXImpl": text,
    "TensorFlowImpl": text,
    "Sequence[int]": integers,
}


def checked(function: Function, rules: Mapping[str, Rule] = RULES) -> Function:
    """The function behind a check of the arguments whose annotations have a rule; ``None`` passes where it may be.

    Its module has its annotations as texts. Errors name a method by its class.
    """
    name = function.__qualname__.partition(".")[0]
    parameters = inspect.signature(function).parameters
    places = [argument for argument, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    found: dict[str, Rule] = {}
    for argument, parameter in parameters.items():
        annotation, may_be_none, _ = str(parameter.annotation).partition(" | None")
        rule = rules.get("str" if annotation.startswith("Literal[") else annotation)
        if rule is not None:
            found[argument] = _unless_none(rule) if may_be_none else rule

    def passed(argument: str, value: Any) -> Any:
        return found[argument](name, argument, value) if argument in found else value

    @wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        arguments = [passed(argument, value) for argument, value in zip(places, given, strict=False)]
        options = {argument: passed(argument, value) for argument, value in options.items()}
        return function(*arguments, *given[len(arguments) :], **options)

    return call  # pyright: ignore[reportReturnType]


def _unless_none(rule: Rule) -> Rule:
    return lambda function, argument, value: None if value is None else rule(function, argument, value)
