// The loop of an agent: the model calls, the program answers (npm install openai).
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE ?? "http://127.0.0.1:8000/v1",
});
const maxTurns = 5;
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Get the weather of a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 40 } },
        required: ["city"],
      },
    },
  },
];
const messages = [{ role: "user", content: "What's the weather in Tokyo?" }];
for (let turn = 0; turn < maxTurns; turn++) {
  const answer = await client.chat.completions.create({
    model: "kimi-k2-0905-preview",
    messages,
    tools,
    tool_choice: turn === 0 ? "required" : turn === maxTurns - 1 ? "none" : "auto",
    parallel_tool_calls: false,
    max_tokens: 300,
  });
  const { message, finish_reason } = answer.choices[0];
  messages.push(message);
  if (finish_reason !== "tool_calls") {
    console.log(message.content || `no answer: ${finish_reason}`);
    break;
  }
  for (const call of message.tool_calls) {
    const { city } = JSON.parse(call.function.arguments); // always valid under the schema
    console.log(`${call.id}: ${call.function.name}(${city})`);
    messages.push({ role: "tool", tool_call_id: call.id, content: `22 degrees in ${city}` });
  }
}
