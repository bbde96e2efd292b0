// The @anthropic-ai/sdk package, unmodified.
import Anthropic from "@anthropic-ai/sdk";

const model = "kimi-k2-0905-preview";
const client = new Anthropic({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE.replace(/\/v1$/, "/anthropic"),
  maxRetries: 0,
});
const ask = (content) => ({ model, max_tokens: 200, messages: [{ role: "user", content }] });
const tools = {
  tools: [
    {
      name: "get_weather",
      input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  ],
  tool_choice: { type: "any", disable_parallel_tool_use: true },
};

const chat = await client.messages.create(ask("Hello there, 世界"));
let pieces = "";
for await (const event of client.messages.stream(ask("one two three"))) {
  if (event.type === "content_block_delta" && event.delta.type === "text_delta") pieces += event.delta.text;
}
const counted = await client.messages.countTokens({ model, messages: ask("Hello there, 世界").messages });
const called = await client.messages.create({ ...ask("Weather?"), ...tools });
const use = called.content.find((block) => block.type === "tool_use");
const streamed = await client.messages.stream({ ...ask("Weather?"), ...tools }).finalMessage();
const streamedUse = streamed.content.find((block) => block.type === "tool_use");
let refused;
try {
  await client.messages.create({ ...ask("x"), messages: [] });
} catch (error) {
  refused = { status: error.status, type: error.error.error.type };
}
console.log(
  JSON.stringify({
    chat: chat.content[0].text,
    pieces,
    counted: counted.input_tokens === chat.usage.input_tokens,
    tool: { name: use.name, id: use.id, city: typeof use.input.city, stop: called.stop_reason },
    streamed: { name: streamedUse.name, city: typeof streamedUse.input.city, stop: streamed.stop_reason },
    refused,
  }),
);
