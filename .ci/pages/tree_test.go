package pages

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// part is a node of the accessibility tree, which is what a screen reader is told of a page.
type part struct {
	role, name  string
	isFocusable bool
	parts       []*part
}

// tree reads the accessibility tree that Chromium makes of the page. Nodes that it ignores are left
// out.
func (x *tab) tree() *part {
	x.t.Helper()
	r, err := chromedp.Call(x.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		x.t.Fatal(err)
	}
	nodes := make(map[accessibility.NodeID]*accessibility.Node)
	for _, n := range r.Nodes {
		nodes[n.NodeID] = n
	}
	text := func(v *accessibility.Value) (s string) {
		if v != nil {
			json.Unmarshal([]byte(v.Value), &s) // a value that is no text has none
		}
		return s
	}
	var add func(to *part, n *accessibility.Node)
	add = func(to *part, n *accessibility.Node) {
		if n == nil {
			return
		}
		if !n.Ignored {
			p := &part{role: text(n.Role), name: strings.TrimSpace(text(n.Name))}
			for _, property := range n.Properties {
				p.isFocusable = p.isFocusable || property.Name == "focusable" && string(property.Value.Value) == "true"
			}
			to.parts = append(to.parts, p)
			to = p
		}
		for _, id := range n.ChildIDs {
			add(to, nodes[id])
		}
	}
	root := new(part)
	add(root, r.Nodes[0])
	return root
}

// each calls f for a part and all parts in it.
func (p *part) each(f func(p *part)) {
	f(p)
	for _, inner := range p.parts {
		inner.each(f)
	}
}

// all lists the parts of some roles.
func (p *part) all(roles ...string) (found []*part) {
	p.each(func(q *part) {
		for _, role := range roles {
			if q.role == role {
				found = append(found, q)
			}
		}
	})
	return found
}

// checkTree checks that everything has a name which is a table, or which the keyboard reaches, that
// tables have heads of rows and columns, and that names have no arrows of the sorting.
func checkTree(t *testing.T, root *part) {
	t.Helper()
	tables := root.all("table", "grid")
	if len(tables) == 0 {
		t.Error("the page has no table")
	}
	for _, table := range tables {
		columns, rows := table.all("columnheader"), table.all("rowheader")
		if table.name == "" || len(columns) < 2 || len(rows) == 0 {
			t.Errorf("a %s has the name %q, %d heads of columns and %d of rows", table.role, table.name, len(columns), len(rows))
		}
		for _, h := range append(columns, rows...) {
			if h.name == "" {
				t.Errorf("the %s %q has a %s without a name", table.role, table.name, h.role)
			}
		}
	}
	root.each(func(p *part) {
		if p.isFocusable && p.name == "" {
			t.Errorf("a %s that the keyboard reaches has no name", p.role)
		}
		if p.role == "button" && strings.ContainsAny(p.name, "↕↑↓") {
			t.Errorf("a button is called %q", p.name)
		}
	})
}

// TestAScreenReaderIsTold reads the accessibility tree: with the page of an adapter and its open
// detail, and with that of two adapters.
func TestAScreenReaderIsTold(t *testing.T) {
	x := open(t, inspected(t, modules(2)))
	x.do(chromedp.Click(chromedp.CSS(`.layers thead th:nth-child(4) button`)))
	x.is(`document.getElementById("status").textContent`, "Sorted by rank, descending")
	x.is(`document.querySelectorAll('th[aria-sort="descending"]').length`, 1)
	root := x.tree()
	checkTree(t, root)
	if grids := root.all("grid"); len(grids) != 2 || grids[0].name != "‖ΔW‖" || grids[1].name != "Effective rank" || len(grids[0].all("gridcell")) != 14 {
		t.Errorf("%d heat maps are grids, want 2 with 14 cells", len(grids))
	}
	if buttons := root.all("button"); len(buttons) < 20 {
		t.Errorf("%d buttons have a name, want 20 or more", len(buttons))
	}
	x.do(chromedp.Click(chromedp.CSS(`.layers tbody tr:nth-child(2) th button`)))
	x.is(`document.getElementById("status").textContent.startsWith("model.layers.")`, true)
	root = x.tree()
	checkTree(t, root)
	statuses := root.all("status")
	if last := statuses[len(statuses)-1]; len(last.parts) == 0 || !strings.Contains(last.parts[0].name, "singular values") {
		t.Error("the detail of a layer is not announced")
	}
	if charts := root.all("image"); len(charts) != 1 || charts[0].name == "" || len(charts[0].parts) > 0 {
		t.Errorf("%d charts are images, want 1 with a name and no parts", len(charts))
	}
	x.do(chromedp.Click(chromedp.CSS(`#chart summary`)))
	checkTree(t, x.tree())

	dir := t.TempDir()
	writeAdapter(t, filepath.Join(dir, "a"), modules(2), 4)
	writeAdapter(t, filepath.Join(dir, "b"), modules(2), 2)
	loratool(t, dir, "diff", "a", "b", "--html", "page.html")
	y := open(t, filepath.Join(dir, "page.html"))
	y.do(chromedp.Click(chromedp.CSS(`.layers tbody th button`)))
	checkTree(t, y.tree())
}

// contrast is the least contrast of text and ground, by the formula of WCAG 2, of cells in all
// shades, and of the colours for text.
const contrast = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
	const luminance = (colour) => {
		canvas.fillStyle = colour;
		canvas.fillRect(0, 0, 1, 1);
		const [r, g, b] = Array.from(canvas.getImageData(0, 0, 1, 1).data, (v) => v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
	const row = document.querySelector(".heat tbody tr"), ground = getComputedStyle(document.body).backgroundColor;
	let least = 21;
	for (const shade of ["h0", ...Array.from({ length: 9 }, (_, i) => ["h" + (i + 1), "m" + (i + 1)]).flat()]) {
		const cell = document.createElement("td");
		cell.className = shade;
		row.append(cell);
		const style = getComputedStyle(cell);
		least = Math.min(least, ratio(style.color, style.backgroundColor));
		cell.remove();
	}
	for (const name of [".meaning", ".layers tbody th button", ".layers thead button", ".facts dt", "footer"])
		least = Math.min(least, ratio(getComputedStyle(document.querySelector(name)).color, ground));
	return least;
})()`

// TestTextHasContrast wants the 4.5 of WCAG 2.1, criterion 1.4.3, in both colour schemes.
func TestTextHasContrast(t *testing.T) {
	x := open(t, inspected(t, modules(1)))
	for _, scheme := range []string{"light", "dark"} {
		command(x, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		least, err := chromedp.Run(x.ctx, chromedp.Evaluate[float64](contrast))
		if err != nil {
			t.Fatal(err)
		}
		if least < 4.5 {
			t.Errorf("in the %s scheme a text has a contrast of %.2f, want 4.5", scheme, least)
		}
	}
}
