// What is typed above the table: words that must occur, and conditions such as em=1 searches>1 stage:train.

const TEXTS = ["stage", "outcome", "answer", "verdict"];
const WORDS = /(?:([\w/-]+)(<=|>=|!=|<|>|=|:))?(?:"([^"]*)"|(\S+))/g;

function parseFilter(text) {
  const conditions = [];
  for (const [, name, sign, quoted, plain] of text.matchAll(WORDS)) {
    const wanted = quoted ?? plain;
    if (!name) { conditions.push(containing(wanted.toLowerCase())); continue; }
    const read = reader(name);
    if (!read) return { error: `${name}: no such column (${columnNames().join(", ")})` };
    conditions.push(condition(read, sign, wanted));
  }
  return { test: number => conditions.every(holds => holds(number)) };
}

const columnNames = () => ["run", "id", "question", "gold", ...Object.keys(data.columns).filter(n => !["run", "question"].includes(n)), ...Object.keys(data.parts).filter(n => !(n in data.columns))];

function reader(name) {
  if (name === "run") return number => data.run(number);
  if (name === "id") return number => data.question(number).id;
  if (name === "question") return number => data.question(number).text;
  if (name === "gold") return number => data.question(number).golds.join(" ");
  if (name === "hop" || !(name in data.columns || name in data.parts)) return null;
  return number => data.value(name, number);
}

function condition(read, sign, wanted) {
  const asNumber = Number(wanted);
  if (sign === ":") return number => String(read(number) ?? "").toLowerCase().includes(wanted.toLowerCase());
  if (sign === "=" || sign === "!=") {
    const same = number => { const value = read(number); return typeof value === "number" ? value === asNumber : String(value ?? "") === wanted; };
    return sign === "=" ? same : number => !same(number);
  }
  const holds = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b }[sign];
  return number => { const value = read(number); return value !== null && holds(value, asNumber); };
}

function containing(word) {
  return number => {
    const { id, text, golds } = data.question(number);
    return [id, text, ...golds, data.value("answer", number) ?? ""].some(part => part.toLowerCase().includes(word));
  };
}
