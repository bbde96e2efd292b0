// A question and its answer (npm install openai).
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE ?? "http://127.0.0.1:8000/v1",
});
const answer = await client.chat.completions.create({
  model: "kimi-k2-0905-preview",
  messages: [{ role: "user", content: "What is the capital of France?" }],
  max_tokens: 64,
});
console.log(answer.choices[0].message.content);
console.log(answer.usage.total_tokens, "tokens");
