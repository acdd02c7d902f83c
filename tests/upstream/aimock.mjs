// A model for the order desk that costs nothing, so that tests, drills and load runs go through the
// real OpenAI client and a real socket. What it says depends on the request alone, so any number of
// callers can share one process.
//
//   PORT   the loopback port to listen on (0, the default, picks a free one and prints it)
//   TTFT   milliseconds before the first token (0)
//   TPS    tokens a second after that (0: as fast as the socket takes them)
//   CHUNK  characters in one streamed chunk (about a token, 4, when TPS is set; otherwise 20)
import { setTimeout as sleep } from "node:timers/promises";
import { LLMock } from "@copilotkit/aimock";

const PORT = Number(process.env.PORT ?? 0);
const TTFT = Number(process.env.TTFT ?? 0);
const TPS = Number(process.env.TPS ?? 0);
const CHUNK = Number(process.env.CHUNK ?? (TPS ? 4 : 20));

const TOOL = "query_order";
const CHARACTERS_IN_A_TOKEN = 4;

const textOf = ({ content }) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");

const orderIds = (text) => [...new Set(text.match(/\b(?:[A-Z]+-)?\d{3,}\b/g) ?? [])];

const found = (results) => `Here is what I found: ${results.join(" ")}`;
const askForAnId = "Please give me an order id.";

// Tool-calling agents: the turn is whatever came after the last message of the user.
function chatReply({ messages, tools = [] }) {
  const asked = messages.findLastIndex(({ role }) => role === "user");
  const results = messages.slice(asked + 1).filter(({ role }) => role === "tool");
  if (results.length) return { content: found(results.map(textOf)) };

  const ids = asked < 0 ? [] : orderIds(textOf(messages[asked]));
  const bound = tools.some((tool) => tool.function?.name === TOOL);
  if (!bound || !ids.length) return { content: askForAnId };
  const call = (id) => ({ name: TOOL, arguments: JSON.stringify({ order_id: id }) });
  return { toolCalls: ids.map(call) };
}

// ReAct agents bind no tools and write their whole history into one prompt. Nothing said here holds
// "Observation", the stop word that this server does not honour: a mock that went on talking would
// be making up the tool's answer.
function reactReply(prompt) {
  const turn = prompt.slice(prompt.lastIndexOf("\nQuestion:"));
  const [head, ...rounds] = turn.split(/\nObservation: ?/);
  const question = head.split(/\nThought:/)[0];
  const ids = orderIds(question);
  const observations = rounds.map((round) => round.split("\nThought:")[0].trim());
  const toldToAnswer = rounds.length > 0 && /final answer/i.test(rounds.at(-1));

  const next = ids[rounds.length];
  if (next && !toldToAnswer) {
    return { content: ` I should look the order up.\nAction: ${TOOL}\nAction Input: ${next}` };
  }
  const answer = observations.length ? found(observations) : askForAnId;
  return { content: ` I now know the final answer\nFinal Answer: ${answer}` };
}

function reply(request) {
  const prompt = request.messages.map(textOf).join("\n");
  const speaksReact = prompt.includes("Thought:") && prompt.includes("Action Input:");
  return speaksReact && !request.tools?.length ? reactReply(prompt) : chatReply(request);
}

// The streaming profile slows streams only, so an answer in one piece waits for as long as its
// tokens would have taken.
async function timedReply(request) {
  const said = reply(request);
  if (!request.stream && (TTFT || TPS)) {
    const tokens = JSON.stringify(said).length / CHARACTERS_IN_A_TOKEN;
    await sleep(TTFT + (TPS ? (1000 * tokens) / TPS : 0));
  }
  return said;
}

const pace = TTFT || TPS ? { ttft: TTFT, tps: TPS || undefined, jitter: 0.1 } : undefined;
const mock = new LLMock({
  port: PORT,
  host: "127.0.0.1",
  journalMaxEntries: 100,
  logLevel: "silent",
});
mock.on({ predicate: () => true }, timedReply, { chunkSize: CHUNK, streamingProfile: pace });
await mock.start();
console.log(`listening on ${mock.url}`);
