"""The order desk that every example works at, small enough to know all its answers by heart."""

from langchain_core.tools import tool

ORDERS = {
    "10021": "delivered on Monday, signed for at the reception",
    "10022": "waiting for payment",
    "10023": "shipped, arriving on Thursday",
    "10024": "being packed",
    "10025": "cancelled by the customer, refund sent",
}


@tool
def query_order(order_id: str) -> str:
    """Look up where an order is, by its id, for example 10023."""
    # ReAct agents write the id as free text, often with quotes or a line break around it.
    known_id = order_id.strip(" \n\"'`")
    if known_id not in ORDERS:
        return f"There is no order {known_id}."
    return f"Order {known_id} is {ORDERS[known_id]}."
