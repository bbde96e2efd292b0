// The Messages API: a chat and a stream (npm install @anthropic-ai/sdk).
import Anthropic from "@anthropic-ai/sdk";

const base = process.env.MOONSHOT_API_BASE ?? "http://127.0.0.1:8000/v1";
const client = new Anthropic({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: base.replace(/\/v1$/, "/anthropic"),
});
const ask = {
  model: "kimi-k2-0905-preview",
  max_tokens: 64,
  messages: [{ role: "user", content: "What is the capital of France?" }],
};
const message = await client.messages.create(ask);
console.log(message.content[0].text);

const stream = client.messages.stream(ask).on("text", (text) => process.stdout.write(text));
const final = await stream.finalMessage();
console.log(`\n${final.usage.output_tokens} tokens`);
