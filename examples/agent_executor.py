"""A classic `AgentExecutor` over a tool-calling agent, for services that have one already.

    watchkeeper serve examples.agent_executor:orders

The model is reached with OPENAI_API_KEY, at OPENAI_BASE_URL where that is set.
"""

import os

from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from examples.order_desk import query_order

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "You work at an order desk. Look orders up; never guess where one is."),
        # Conversations need a place in the prompt; without this line there are none.
        ("placeholder", "{chat_history}"),
        ("human", "{input}"),
        ("placeholder", "{agent_scratchpad}"),
    ]
)


def orders() -> AgentExecutor:
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
    tools = [query_order]
    return AgentExecutor(
        agent=create_tool_calling_agent(model, tools, PROMPT),
        tools=tools,
        max_iterations=10,
        return_intermediate_steps=True,
    )
