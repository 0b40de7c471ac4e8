// The memory lab as chapter 3 opens it: a cell that its forget gate holds for a line of text.
// needs: weights recurrent memory
// model: rnn lstm
"use strict";

explorer("lstm_memory", (root, data) =>
  memoryLab(root, data, {
    start: 1,
    bet: ({ choose, row, lag, last, now }) => ({
      ask: "Set a lag and look at the strip f. How many percent of what this unit's cell held at that character " +
        "is still in it, by its forget gates alone?",
      number: [0, 100],
      check(guess) {
        if (!row("f")) choose({ network: "1" });
        const gates = row("f").slice(last() - lag() + 1);
        const share = 100 * gates.reduce((all, gate) => all * gate, 1);
        const least = gates.length ? Math.min(...gates).toFixed(2) : "none";
        return {
          right: Math.abs(guess - share) <= 10,
          why: `The ${gates.length} forget gates of unit ${now().unit} since then multiply to ${share.toFixed(0)} %; ` +
            `the smallest of them is ${least}. One gate near 0 is enough to clear the cell, and ` +
            "gates near 1 keep it for as long as they stay there.",
        };
      },
    }),
  }));
