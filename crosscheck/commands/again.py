"""The command line that makes a check again, for its report."""

from __future__ import annotations

import shlex

import click

__all__ = ["command_line"]

_NOT_OF_THE_CHECK = {"json_path", "html_path", "markdown_path", "junit_path", "shrink_to"}
_NOT_OF_THE_CHECK |= {"quiet", "verbose", "max_memory"}
_ALWAYS = {"seed"}


def command_line() -> str:
    """The running command as it was given, without the files that it writes; the seed always.

    Empty outside of a command.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.info_name is None:
        return ""
    words = ["crosscheck", context.info_name]
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if name in _NOT_OF_THE_CHECK or not (given or name in _ALWAYS):
            continue
        words += _words(parameter, context.params[name])
    return shlex.join(words)


def _words(parameter: click.Parameter, value: object) -> list[str]:
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(parameter, click.Argument):
        return [str(v) for v in values]
    flag = max(parameter.opts, key=len)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [flag]
    return [word for v in values for word in (flag, str(v))]
