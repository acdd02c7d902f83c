"""An agent of `langchain.agents.create_agent`: the shortest way to a model that calls tools.

    watchkeeper serve examples.create_agent:orders

The model is reached with OPENAI_API_KEY, at OPENAI_BASE_URL where that is set.
"""

import os
from typing import Any

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph

from examples.order_desk import query_order


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
    )
    return create_agent(
        model,
        tools=[query_order],
        system_prompt="You work at an order desk. Look orders up; never guess where one is.",
    )
