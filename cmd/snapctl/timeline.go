package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"
)

// Lanes of the drawn timeline from above, with their colours.
var lanes = []struct{ name, colour string }{
	{"snapctl", "#4c6a92"},
	{"resolve", "#556270"},
	{"profile", "#8e6bb0"},
	{"index", "#2f8f83"},
	{"import", "#b5653a"},
	{"image", "#7aa64a"},
	{"mount", "#b0892e"},
	{"ahead", "#5fb0e8"},
	{"prefetch", "#3d8bd4"},
	{"background", "#9aa5b1"},
	{"demand", "#d9822b"},
	{"wait", "#c23b3b"},
	{besideLane, "#8a8d93"},
}

const (
	svgLeft, svgWidth, svgRight = 110, 960, 30 // pixels
	svgRow                      = 16
	svgTop                      = 46
)

// draw returns the timeline as SVG: a lane for each kind, bars that overlap below each other.
func (r *traced) draw() []byte {
	end := time.Duration(r.Seconds * float64(time.Second))
	for _, s := range r.Spans {
		if s.Lane == "snapctl" || s.Lane == "wait" || s.Lane == besideLane {
			end = max(end, s.Begin+s.Took)
		}
	}
	x := func(d time.Duration) float64 {
		return svgLeft + svgWidth*float64(min(max(d, 0), end))/float64(max(end, 1))
	}
	var body bytes.Buffer
	y := svgTop
	for _, lane := range lanes {
		var rows []time.Duration // when each row is free
		for _, s := range r.Spans {
			if s.Lane != lane.name {
				continue
			}
			row := 0
			for row < len(rows) && rows[row] > s.Begin {
				row++
			}
			if row == len(rows) {
				rows = append(rows, 0)
			}
			rows[row] = s.Begin + s.Took
			title := fmt.Sprintf("%s: %s, %.1f ms from %.1f ms", s.Lane, s.Name, ms(s.Took), ms(s.Begin))
			if s.Bytes > 0 {
				title += ", " + size(s.Bytes)
			}
			left, right := x(s.Begin), x(s.Begin+s.Took)
			top := y + row*svgRow
			fmt.Fprintf(&body, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s" stroke="#fff" stroke-width="0.5">`+
				"<title>%s</title></rect>\n",
				left, top, max(right-left, 1), svgRow-2, lane.colour, escape(title))
			if right-left > float64(7*len(s.Name)) {
				fmt.Fprintf(&body, `<text x="%.1f" y="%d" fill="#fff">%s</text>`+"\n", left+4, top+11, escape(s.Name))
			}
		}
		if len(rows) == 0 {
			continue
		}
		label := lane.name
		if label == besideLane {
			label = r.Beside
		}
		fmt.Fprintf(&body, `<text x="8" y="%d">%s</text>`+"\n", y+11, escape(label))
		y += len(rows)*svgRow + 4
	}
	step := gridStep(end)
	var grid bytes.Buffer
	for at := time.Duration(0); at <= end; at += step {
		fmt.Fprintf(&grid, `<line x1="%.1f" y1="30" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="42" fill="#777">%d</text>`+"\n",
			x(at), x(at), y, x(at)+2, at.Milliseconds())
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n",
		svgLeft+svgWidth+svgRight, y+8)
	fmt.Fprintf(&out, `<rect width="100%%" height="100%%" fill="#fff"/><text x="8" y="18" font-size="13">%s: %s after %.0f ms; `+
		"%s ahead, %s on demand, %d reads waited</text>\n",
		escape(r.Image), escape(r.Ended), r.Seconds*1000, size(r.Prefetched), size(r.Demanded), r.Waits)
	out.Write(grid.Bytes())
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// gridStep is a round time of which about ten make the whole.
func gridStep(end time.Duration) time.Duration {
	for step := time.Millisecond; ; step *= 10 {
		for _, k := range []time.Duration{1, 2, 5} {
			if end/(step*k) <= 12 {
				return step * k
			}
		}
	}
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
