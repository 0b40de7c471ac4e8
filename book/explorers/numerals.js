// Numbers in English words and in Chinese numerals, as `rnn2gpt.translation` writes them.
"use strict";

const SMALL = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen " +
  "sixteen seventeen eighteen nineteen").split(" ");
const TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split(" ");
const GROUPS = [[1e9, "billion"], [1e6, "million"], [1e3, "thousand"]];

function wordsBelowThousand(n) {
  if (n < 20) return [SMALL[n]];
  if (n < 100) return [TENS[Math.floor(n / 10) - 2], ...(n % 10 ? [SMALL[n % 10]] : [])];
  const rest = n % 100 ? ["and", ...wordsBelowThousand(n % 100)] : [];
  return [SMALL[Math.floor(n / 100)], "hundred", ...rest];
}

// A whole number 0 ≤ n < 10¹² in words, without commas and hyphens.
function englishNumber(n) {
  const words = GROUPS.flatMap(([size, name]) => {
    const group = Math.floor(n / size) % 1000;
    return group ? [...wordsBelowThousand(group), name] : [];
  });
  const ones = n % 1000;
  if (ones && ones < 100 && words.length) words.push("and");
  if (ones || !words.length) words.push(...wordsBelowThousand(ones));
  return words.join(" ");
}

// The same number in Chinese numerals: sections of four digits, a run of zeros read once.
function chineseNumber(n) {
  let [text, gap] = ["", false];
  for (let place = 11; place >= 0; place--) {
    const digit = Math.floor(n / 10 ** place) % 10;
    const section = Math.floor(n / 10 ** (place - (place % 4))) % 1e4;
    if (digit) {
      text += (gap && text ? "零" : "") + "零一二三四五六七八九"[digit] + ["", "十", "百", "千"][place % 4];
    }
    gap = !digit;
    if (place % 4 === 0 && section) [text, gap] = [text + ["", "万", "亿"][place / 4], false];
  }
  return text.replace(/^一(?=十)/, "") || "零";
}

// The number that English words stand for, or null where `englishNumber` would write other words.
function numberOf(text) {
  const words = text.toLowerCase().match(/[a-z]+/g) ?? [];
  let [all, group] = [0, 0];
  for (const word of words) {
    const size = GROUPS.find(([, name]) => name === word)?.[0];
    if (size) [all, group] = [all + group * size, 0];
    else if (word === "hundred") group *= 100;
    else if (SMALL.includes(word)) group += SMALL.indexOf(word);
    else if (TENS.includes(word)) group += 10 * (TENS.indexOf(word) + 2);
  }
  const n = all + group;
  return n < 1e12 && englishNumber(n) === words.join(" ") ? n : null;
}
