"""What can go wrong, as one small tree.

Txt2imgError               1   anything below; one line: what was got, what is allowed, what to do
├── BadRequest             2   an option, prompt or size that cannot be used
├── BadFile                1   a file that is not what it should be: cut short, of a wrong kind
│   ├── UnknownLayout      1   weights of a family or layout that is not known
│   └── MissingWeights     1   tensors missing, left over, of another shape, or not finite
├── ModelNotFound          1   no model of that name or path
├── BadOutput              1   a picture that cannot be written
│   └── Rejected           4   a picture that should not be: not finite, or black or flat if asked
└── OutOfMemory            5   neither the device nor the fallback has room
"""


class Txt2imgError(Exception):
    """Base of all errors a user can cause; its text is one line, `exit_code` the process's."""

    exit_code = 1


class BadRequest(Txt2imgError):
    """An option, a prompt or a size that cannot be used: a usage error."""

    exit_code = 2


class BadFile(Txt2imgError):
    """A file that is not what it should be."""


class UnknownLayout(BadFile):
    """Weights whose family or layout is not known."""


class MissingWeights(BadFile):
    """Tensors that are missing, left over, of another shape, or not finite."""


class ModelNotFound(Txt2imgError):
    """No model of that name or at that path."""


class BadOutput(Txt2imgError):
    """A picture that cannot be written, or that should not be."""


class Rejected(BadOutput):
    """A picture that is none: not finite; or black or flat, where that is asked for."""

    exit_code = 4


class OutOfMemory(Txt2imgError):
    """Neither the device nor the fallback has room."""

    exit_code = 5
