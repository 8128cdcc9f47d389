"""Stand-ins for what belongs to others. They fail as the real ones do, but at known times."""

import time


class CardRefused(Exception):
    """The bank says no, and will say so again."""


def charge(card: str, amount, *, attempt: int) -> None:
    """The bank: away when it is asked first."""
    if card.startswith("0"):
        raise CardRefused("The bank has refused the card.")
    if attempt == 1:
        raise ConnectionError("The bank does not answer.")


def exchange_rate(*, attempt: int) -> float:
    """Rupees for a euro, from a service that is away twice."""
    if attempt <= 2:
        raise ConnectionError("The exchange rates are not to be had.")
    return 163.4


def ask_price(supplier: str) -> float:
    """One of the suppliers takes its time."""
    seconds, price = {"Asha": (0.1, 2.4), "Bikram": (0.2, 2.2), "Chandra": (600, 1.9)}[supplier]
    time.sleep(seconds)
    return price


def count_stock(product: str) -> int:
    """The warehouse."""
    return 100 + len(product)
