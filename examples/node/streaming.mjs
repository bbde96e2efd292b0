// An answer as it is written, and what it cost (npm install openai).
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE ?? "http://127.0.0.1:8000/v1",
});
const stream = await client.chat.completions.create({
  model: "kimi-k2-0905-preview",
  messages: [{ role: "user", content: "Count to five." }],
  max_tokens: 64,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  if (chunk.choices.length === 0) console.log(`\n${chunk.usage.completion_tokens} tokens`);
}
