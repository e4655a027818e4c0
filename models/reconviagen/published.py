"""Arguments of published configurations: every key is known, and a value that is not built is refused."""

from __future__ import annotations


def require(config: object, **values: object) -> None:
    """Check fields of a configuration that only one value is built for.

    Published configurations name all arguments of their networks' constructors, also those of variants that
    nothing was published for.

    Raises:
        ValueError: if a field of `config` has another value than the one given here under its name.
    """
    for name, value in values.items():
        found = getattr(config, name)
        if found != value:
            raise ValueError(f"{type(config).__name__}: {name} must be {value!r}, got {found!r}")
