package main

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// spared is the score of a process that the kernel is asked not to choose when memory is short.
const spared = -999

const oomScoreFile = "/proc/self/oom_score_adj"

// spareFromOOM asks the kernel not to choose this process when memory is short, since readers of every lazy layer and users of
// every disk depend on it. It asks only where a control group limits what the process may take, so that a leak harms the process
// alone: elsewhere it would harm all others first.
func spareFromOOM(log *slog.Logger) {
	limit, limited := groupMemory()
	if err := adjustScore(limited); err != nil {
		log.Warn("the kernel may choose this process when memory is short", "err", err)
	} else if limited {
		log.Debug("the kernel spares this process when memory is short", "limit", limit)
	} else {
		log.Info("the kernel may choose this process when memory is short: no control group limits what it takes")
	}
}

func adjustScore(limited bool) error {
	p, err := os.ReadFile(oomScoreFile)
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(p)))
	if err != nil {
		return fmt.Errorf("%s: %w", oomScoreFile, err)
	}
	want := wantedScore(score, limited)
	if want == score {
		return nil
	}
	return os.WriteFile(oomScoreFile, []byte(strconv.Itoa(want)), 0)
}

// wantedScore leaves alone what others have chosen. What a process without a limit has inherited from one with a limit, it gives back.
func wantedScore(score int, limited bool) int {
	switch {
	case limited:
		return min(score, spared)
	case score == spared:
		return 0
	}
	return score
}
