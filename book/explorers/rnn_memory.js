// The memory lab as chapter 2 opens it: the gradient vanishes, and clipping does not help.
// needs: weights recurrent memory
// model: rnn lstm
"use strict";

explorer("rnn_memory", (root, data) =>
  memoryLab(root, data, {
    start: 0,
    bet: ({ choose, last, now }) => ({
      ask: "Switch clipping on: the gradient of all weights together may then be 1 long at most. What " +
        "becomes of the share that a character 20 back has of what the last one has?",
      options: ["it grows: clipping lifts what is weak", "it stays as it is", "it shrinks with the gradient"],
      check(guess) {
        const k = Math.min(20, last());
        const share = () => now().drawn[k] / now().drawn[0];
        choose({ clipping: false, lag: k });
        const before = share();
        choose({ clipping: true });
        const change = share() / before - 1;
        const truth = Math.abs(change) < 1e-9 ? 1 : change > 0 ? 0 : 2;
        return {
          right: guess === truth,
          why: `${powerOf(before)} without clipping, ${powerOf(share())} with it: all is multiplied by ` +
            `${powerOf(now().factor)}. Clipping tames a gradient that explodes; load the networks and double ` +
            "the recurrent weights to see one. It brings back none that has vanished.",
        };
      },
    }),
  }));
