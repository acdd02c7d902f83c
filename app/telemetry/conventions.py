"""Names of spans and attributes: OpenTelemetry's conventions for generative AI, and our own.

The conventions are in development, so only this module has their strings. They are those of
open-telemetry/semantic-conventions-genai as shipped in opentelemetry-semantic-conventions 0.66b2;
a test compares ours with that package.
"""

from dataclasses import dataclass

OPERATION = "gen_ai.operation.name"
AGENT_NAME = "gen_ai.agent.name"
CONVERSATION = "gen_ai.conversation.id"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
REASONING = "gen_ai.usage.reasoning.output_tokens"
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TOOL_TYPE = "gen_ai.tool.type"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
ERROR_TYPE = "error.type"

RUN_ID = "agent.run.id"
RUN_MODE = "agent.run.mode"
RUN_OUTCOME = "agent.run.outcome"
RUN_ITERATIONS = "agent.run.iterations"
RUN_ITERATION_LIMIT = "agent.run.iteration_limit"
RUN_LIMIT = "agent.run.limit"
RUN_REFUSED = "agent.run.refused"
RUN_TOOL_CALLS = "agent.run.tool_calls"
RUN_DEADLINE = "agent.run.deadline_s"
RUN_TIMEOUT_PHASE = "agent.run.timeout.phase"
RUN_COST = "agent.run.cost_usd"
TASK_ATTEMPT = "agent.task.attempt"
TASK_QUEUE_WAIT = "agent.queue.wait_s"
ITERATION = "agent.iteration"
LLM_ATTEMPT = "agent.llm.attempt"
CALL_OUTCOME = "agent.call.outcome"
TOOL_OUTCOME = "agent.tool.outcome"

# LangChain's names of providers for which the conventions have another name.
PROVIDERS = {
    "azure": "azure.ai.openai",
    "amazon_bedrock": "aws.bedrock",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}

INVOKE_AGENT, CHAT, EXECUTE_TOOL = "invoke_agent", "chat", "execute_tool"
RUN_TASK = "run_task"


@dataclass(frozen=True, slots=True)
class SpanKindOf:
    """One kind of span, for the reference page."""

    name: str
    kind: str
    parent: str
    attributes: tuple[str, ...]


SPANS = (
    SpanKindOf(
        f"{RUN_TASK} {{agent}}",
        "CONSUMER",
        "none; linked to the span that submitted it and to the former attempt",
        (RUN_ID, TASK_ATTEMPT, TASK_QUEUE_WAIT),
    ),
    SpanKindOf(
        f"{INVOKE_AGENT} {{agent}}",
        "INTERNAL",
        "the server span, or run_task",
        (
            OPERATION, AGENT_NAME, CONVERSATION, INPUT_TOKENS, OUTPUT_TOKENS, RUN_ID, RUN_MODE,
            RUN_OUTCOME, RUN_ITERATIONS, RUN_ITERATION_LIMIT, RUN_LIMIT, RUN_REFUSED,
            RUN_TOOL_CALLS, RUN_DEADLINE, RUN_TIMEOUT_PHASE, RUN_COST, ERROR_TYPE,
        ),
    ),
    SpanKindOf(
        f"{CHAT} {{model}}",
        "CLIENT",
        "invoke_agent, or that of a sub-agent",
        (
            OPERATION, AGENT_NAME, PROVIDER, REQUEST_MODEL, FINISH_REASONS, FIRST_CHUNK,
            INPUT_TOKENS, OUTPUT_TOKENS, CACHE_READ, REASONING, ITERATION, LLM_ATTEMPT,
            CALL_OUTCOME, ERROR_TYPE, INPUT_MESSAGES, OUTPUT_MESSAGES,
        ),
    ),
    SpanKindOf(
        f"{EXECUTE_TOOL} {{tool}}",
        "INTERNAL",
        "invoke_agent, or that of a sub-agent",
        (
            OPERATION, AGENT_NAME, TOOL_NAME, TOOL_CALL_ID, TOOL_TYPE, ITERATION, TOOL_OUTCOME,
            ERROR_TYPE, TOOL_ARGUMENTS, TOOL_RESULT,
        ),
    ),
    SpanKindOf(
        f"{INVOKE_AGENT} {{sub-agent}}",
        "INTERNAL",
        "the execute_tool that called it",
        (
            OPERATION, AGENT_NAME, INPUT_TOKENS, OUTPUT_TOKENS, RUN_ITERATIONS, RUN_TOOL_CALLS,
            ERROR_TYPE,
        ),
    ),
)  # fmt: skip

# Attributes with text of callers, models or tools: only by opt-in.
CONTENT = (INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_ARGUMENTS, TOOL_RESULT)
