"""Errors, as one tree, with the exit codes of the command.

Txt2imgError               1   the base; its text is one line: what is wrong, what to do
├── BadRequest             2   an option, prompt or size that cannot be used
├── BadFile                1   a file that is cut short, broken or of a wrong kind
│   ├── UnknownLayout      1   weights of an unknown family or layout
│   └── MissingWeights     1   tensors missing, left over, of another shape, or not finite
├── ModelNotFound          1   no model of that name or path
├── BadOutput              1   a picture that cannot be written
│   └── Rejected           4   a picture that is not finite; or black or flat, with --reject
├── EnhanceFailed          1   a language model that gave no prompt
└── OutOfMemory            5   memory ran out on the device and in all fallbacks
"""


class Txt2imgError(Exception):
    """Base of all errors that a user can cause, with the command's `exit_code`."""

    exit_code = 1


class BadRequest(Txt2imgError):
    """An option, a prompt or a size that cannot be used: a usage error."""

    exit_code = 2


class BadFile(Txt2imgError):
    """A file that is cut short, broken or of a wrong kind."""


class UnknownLayout(BadFile):
    """Weights of an unknown family or layout."""


class MissingWeights(BadFile):
    """Tensors that are missing, left over, of another shape, or not finite."""


class ModelNotFound(Txt2imgError):
    """No model of that name or at that path."""


class BadOutput(Txt2imgError):
    """A picture that cannot be written, or is rejected."""


class Rejected(BadOutput):
    """A picture that is not finite; or black or flat, with --reject."""

    exit_code = 4


class EnhanceFailed(Txt2imgError):
    """A language model that gave no prompt: dead, slow, or with an answer that is none."""


class OutOfMemory(Txt2imgError):
    """Memory ran out on the device and in all fallbacks."""

    exit_code = 5
