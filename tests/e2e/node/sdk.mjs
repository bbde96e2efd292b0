// What a Node program does with the openai package: a chat, a stream, JSON by schema, an expected error.
// Prints one JSON object with what it got.
import OpenAI, { BadRequestError } from "openai";

const client = new OpenAI({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE,
  maxRetries: 0,
});
const model = "kimi-k2-0905-preview";
const say = (content) => [{ role: "user", content }];
const result = {};

const { data: chat, response } = await client.chat.completions
  .create({ model, messages: say("Hello there, 世界") })
  .withResponse();
result.chat = chat.choices[0].message.content;
result.tokens = chat.usage.total_tokens;
result.requestId = response.headers.get("msh-request-id");

const stream = await client.chat.completions.create({
  model,
  messages: say("one two three"),
  stream: true,
  stream_options: { include_usage: true },
});
result.pieces = [];
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) result.pieces.push(piece);
  if (chunk.usage) result.streamTokens = chunk.usage.total_tokens;
}

const folded = await client.chat.completions
  .stream({ model, messages: say("four five") })
  .finalChatCompletion();
result.folded = folded.choices[0].message.content;

const parsed = await client.chat.completions.parse({
  model,
  messages: say('{"name": "Bob", "age": 12}'),
  response_format: {
    type: "json_schema",
    json_schema: {
      name: "person",
      strict: true,
      schema: {
        type: "object",
        properties: { name: { type: "string" }, age: { type: "integer" } },
        required: ["name", "age"],
        additionalProperties: false,
      },
    },
  },
});
result.age = JSON.parse(parsed.choices[0].message.content).age;

try {
  await client.chat.completions.create({ model, messages: [] });
} catch (error) {
  result.refused = { bad: error instanceof BadRequestError, status: error.status, error: error.error };
}

result.models = (await client.models.list()).data.length;
console.log(JSON.stringify(result));
