"""Numbers in sentences."""


def number_of(count: int, thing: str) -> str:
    """A number and what it counts, such as "1 seed" and "1,024 seeds"."""
    return f"{count:,} {thing}{'s' * (count != 1)}"
