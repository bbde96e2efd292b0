// An answer that fits a schema, whatever the model (npm install openai).
import OpenAI from "openai";

const client = new OpenAI({
  apiKey: process.env.MOONSHOT_API_KEY,
  baseURL: process.env.MOONSHOT_API_BASE ?? "http://127.0.0.1:8000/v1",
});
const schema = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 40 },
    country: { type: "string", enum: ["France", "Japan", "Peru"] },
  },
  required: ["name", "country"],
};
const answer = await client.chat.completions.create({
  model: "kimi-k2-0905-preview",
  messages: [{ role: "user", content: "Describe Tokyo." }],
  response_format: { type: "json_schema", json_schema: { name: "city", schema } },
  max_tokens: 200,
});
const city = JSON.parse(answer.choices[0].message.content);
console.log(city.name, city.country);
