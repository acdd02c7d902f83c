"""A graph put together by hand, for when the loop of model and tools has to be your own.

    watchkeeper serve examples.langgraph_graph:orders

The model is reached with OPENAI_API_KEY, at OPENAI_BASE_URL where that is set.
"""

import os
from typing import Any

from langchain_core.messages import AnyMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from examples.order_desk import query_order

INSTRUCTIONS = SystemMessage("You work at an order desk. Look orders up; never guess where one is.")


def orders() -> CompiledStateGraph[Any, Any, Any, Any]:
    """Built when it is served, not when it is imported, so that importing needs no key."""
    model = ChatOpenAI(
        model="gpt-4.1-mini",
        # With an address the client shares one pool of connections for it.
        base_url=os.environ.get("OPENAI_BASE_URL"),
        # Connect, read, write, pool, in seconds. Without it a silent model is never given up.
        timeout=(5, 60, 30, 5),
        # Behind any other base URL than OpenAI's, streams would report no tokens used.
        stream_usage=True,
        # Compatible endpoints speak chat completions; some model names would leave them unasked.
        use_responses_api=False,
    ).bind_tools([query_order])

    async def ask_model(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [await model.ainvoke([INSTRUCTIONS, *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", ask_model)
    # A ToolNode, rather than a function of your own, is what lets the tool calls be watched.
    graph.add_node("tools", ToolNode([query_order]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()
