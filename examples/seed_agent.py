"""The agent that the classic tutorials end with: ReAct in plain text, served as it stands.

    watchkeeper serve examples.seed_agent:agent

Only its imports are today's, and its prompt stands here instead of being fetched from a hub. The
model is reached with OPENAI_API_KEY, at OPENAI_BASE_URL where that is set.
"""

import os

from langchain_classic.agents import AgentExecutor, create_react_agent
from langchain_core.prompts import PromptTemplate
from langchain_openai import ChatOpenAI

from examples.order_desk import query_order

PROMPT = PromptTemplate.from_template(
    """Answer the following questions as best you can. You have access to the following tools:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{tool_names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can repeat N times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {input}
Thought:{agent_scratchpad}"""
)


def agent() -> AgentExecutor:
    """Built when it is served, not when it is imported, so that importing needs no key."""
    model = ChatOpenAI(
        model="gpt-4.1-mini",
        temperature=0,
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
        agent=create_react_agent(model, tools, PROMPT),
        tools=tools,
        max_iterations=10,
        # Today's agents would raise a ValueError here at the limit. Watchkeeper stops the run first
        # and asks the model for the answer itself.
        early_stopping_method="generate",
        handle_parsing_errors=True,
        return_intermediate_steps=True,
        verbose=False,
    )
