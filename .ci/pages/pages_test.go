// Package pages opens pages of loratool in a headless Chromium: its console stays empty, layers
// show their charts, tables sort, hostile names do nothing, and no width or colour scheme breaks
// the layout. Its accessibility tree has names, and its text contrast.
//
//	go test . -args path/to/loratool
package pages

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// hostile are module names that would run a script where a page did not escape them.
var hostile = []string{
	`<script>window.hacked = 1</script>`,
	`</script><script>window.hacked = 2</script>`,
	`"><img src="x" onerror="window.hacked = 3">`,
	`{{.Policy}}<b>bold</b>`,
}

// browser is one Chromium for all tests.
var browser context.Context

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "go test . -args path/to/loratool")
		os.Exit(2)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1280, 900))
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	var stop context.CancelFunc
	browser, stop = chromedp.NewContext(allocator)
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, "Chromium does not start:", err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	end()
	os.Exit(code)
}

// tab is a page in the browser, with the complaints of its console and its requests.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
}

// open opens a page in a tab of its own. The tab has no complaints when the test ends.
func open(t *testing.T, file string) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(browser)
	x := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		stop()
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, c := range x.complaints {
			t.Errorf("%s: %s", filepath.Base(file), c)
		}
	})
	url := "file://" + file
	listen := func(event any) {
		x.mu.Lock()
		defer x.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			x.complaints = append(x.complaints, "exception: "+e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			x.complaints = append(x.complaints, fmt.Sprintf("the console has a message of type %s", e.Type))
		case *log.EventEntryAdded:
			x.complaints = append(x.complaints, "the browser says: "+e.Entry.Text)
		case *network.EventRequestWillBeSent:
			if e.Request.URL != url {
				x.complaints = append(x.complaints, "the page requests "+e.Request.URL)
			}
		}
	}
	if err := chromedp.Listen(ctx, listen); err != nil {
		t.Fatal(err)
	}
	command(x, network.Enable, network.EnableParams{})
	command(x, log.Enable, cdp.Empty{})
	x.do(chromedp.Navigate(url))
	return x
}

func (x *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	x.t.Helper()
	if err := chromedp.Do(x.ctx, actions...); err != nil {
		x.t.Fatal(err)
	}
}

// command sends a command of the protocol.
func command[P, R any](x *tab, c cdp.Command[P, R], params P) {
	x.t.Helper()
	if _, err := chromedp.Call(x.ctx, c, params); err != nil {
		x.t.Fatal(err)
	}
}

// is checks that an expression of JavaScript has a value.
func (x *tab) is(expression string, want any) {
	x.t.Helper()
	got, err := chromedp.Run(x.ctx, chromedp.Evaluate[any](expression))
	if err != nil {
		x.t.Fatalf("%s: %v", expression, err)
	}
	switch n := want.(type) {
	case int:
		want = float64(n)
	case int64:
		want = float64(n)
	}
	if got != want {
		x.t.Errorf("%s = %v, want %v", expression, got, want)
	}
}

// loratool runs the command in a directory.
func loratool(t *testing.T, dir string, args ...string) {
	t.Helper()
	program, err := filepath.Abs(flag.Arg(0))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("loratool %q: %v\n%s", args, err, out)
	}
}

// writeAdapter writes an adapter of PEFT with linear layers of the given names. Layer i has a ΔW of
// rank r with the singular values (i+1)·2^-k.
func writeAdapter(t *testing.T, dir string, modules []string, r int) {
	t.Helper()
	const side = 24
	type entry struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets []int  `json:"data_offsets"`
	}
	header := make(map[string]entry)
	var values bytes.Buffer
	add := func(name string, rows, columns int, value func(i, j int) float64) {
		start := values.Len()
		for i := range rows {
			for j := range columns {
				binary.Write(&values, binary.LittleEndian, math.Float32bits(float32(value(i, j))))
			}
		}
		header[name] = entry{"F32", []int{rows, columns}, []int{start, values.Len()}}
	}
	for n, module := range modules {
		add("base_model.model."+module+".lora_A.weight", r, side, func(i, j int) float64 {
			if i != j {
				return 0
			}
			return float64(n+1) / math.Exp2(float64(i))
		})
		add("base_model.model."+module+".lora_B.weight", side, r, func(i, j int) float64 {
			if i != j {
				return 0
			}
			return 1
		})
	}
	head, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	head = append(head, strings.Repeat(" ", -len(head)&7)...)
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(head)))
	file = append(append(file, head...), values.Bytes()...)
	config := fmt.Sprintf(`{"peft_type": "LORA", "r": %d, "lora_alpha": %d, "target_modules": "all-linear"}`, r, r)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"adapter_model.safetensors": file, "adapter_config.json": []byte(config)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// modules are the names of the linear layers of a model.
func modules(nBlocks int) (names []string) {
	for i := range nBlocks {
		for _, part := range []string{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} {
			names = append(names, fmt.Sprintf("model.layers.%d.%s", i, part))
		}
	}
	return names
}

// inspected returns the page of an adapter with the given layers.
func inspected(t *testing.T, names []string) string {
	dir := t.TempDir()
	writeAdapter(t, filepath.Join(dir, "adapter"), names, 8)
	loratool(t, dir, "inspect", "adapter", "--html", "page.html")
	return filepath.Join(dir, "page.html")
}

const (
	firstName = `document.querySelector(".layers tbody th").textContent`
	rows      = `document.querySelectorAll(".layers tbody tr:not([hidden])").length`
	sorted    = `document.querySelector(".layers th[aria-sort]")?.textContent + " " + document.querySelector(".layers th[aria-sort]")?.ariaSort`
	charts    = `document.querySelectorAll("#detail:not([hidden]) #chart canvas").length`
	isWide    = `document.documentElement.scrollWidth > document.documentElement.clientWidth`
	head      = `//table[@class="layers"]//thead//button[text()="%s"]`
)

func TestALayerShowsItsSpectrum(t *testing.T) {
	x := open(t, inspected(t, modules(4)))
	x.is(charts, 0)
	x.do(chromedp.Click(chromedp.CSS(`.layers tbody tr:nth-child(2) th button`)))
	x.is(charts, 1)
	x.is(`document.getElementById("detail-name").textContent`, "model.layers.0.mlp.gate_proj")
	x.is(`document.querySelectorAll("#chart details tbody tr").length`, 8)
	// The chart has ink of the accent colour.
	x.is(`(() => {
		const c = document.querySelector("#chart canvas"), p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
		let n = 0;
		for (let i = 0; i < p.length; i += 4) n += p[i + 3] > 200 && p[i + 2] > p[i] + 60;
		return n > 100;
	})()`, true)
	x.do(chromedp.KeyEvent(kb.Escape))
	x.is(charts, 0)
	x.is(`document.activeElement.textContent`, "model.layers.0.mlp.gate_proj")
}

func TestAMapIsUsedByKeyboard(t *testing.T) {
	x := open(t, inspected(t, modules(4)))
	x.do(chromedp.Focus(chromedp.CSS(`.heat td[tabindex="0"]`)), chromedp.KeyEvent(kb.ArrowDown+kb.ArrowRight+kb.Enter))
	x.is(charts, 1)
	x.is(`document.getElementById("detail-name").textContent`, "model.layers.1.mlp.gate_proj")
	x.do(chromedp.KeyEvent(kb.ArrowDown))
	x.is(`document.getElementById("detail-name").textContent`, "model.layers.2.mlp.gate_proj")
	x.is(`document.querySelectorAll('.heat')[0].querySelectorAll('td[tabindex="0"]').length`, 1)
	x.do(chromedp.Click(chromedp.CSS(`#close`)))
	x.is(charts, 0)
}

func TestTablesSort(t *testing.T) {
	x := open(t, inspected(t, modules(12)))
	x.is(firstName, "model.layers.0.mlp.down_proj")
	x.do(chromedp.Click(fmt.Sprintf(head, "‖ΔW‖")))
	x.is(sorted, "‖ΔW‖ descending")
	x.is(firstName, "model.layers.11.mlp.down_proj") // the last in the file of the test
	x.do(chromedp.KeyEvent(kb.Enter))
	x.is(sorted, "‖ΔW‖ ascending")
	x.is(firstName, "model.layers.0.self_attn.q_proj")
	x.do(chromedp.Focus(chromedp.CSS(`.layers thead th:first-child button`)), chromedp.KeyEvent(" "))
	x.is(sorted, "module ascending")
	x.is(`Array.from(document.querySelectorAll(".layers tbody th"), (e) => e.textContent)[14]`, "model.layers.2.mlp.down_proj") // not 10
	x.do(chromedp.Click(chromedp.CSS(`.heat thead th:nth-child(2) button`)))
	x.is(`document.querySelector(".heat tbody th").textContent`, "11")
}

func TestLayersAreFound(t *testing.T) {
	x := open(t, inspected(t, modules(12)))
	x.do(chromedp.SendKeys(chromedp.CSS(`#find`), "LAYERS.1.mlp"))
	x.is(rows, 3)
	x.is(`document.getElementById("found").textContent`, "3 of 84")
}

func TestHostileNamesAreInert(t *testing.T) {
	var names []string
	for i, name := range hostile {
		names = append(names, fmt.Sprintf("layers.%d.%s", i, name))
	}
	x := open(t, inspected(t, append(names, modules(1)...)))
	x.is(rows, 11)
	x.do(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll(".layers tbody button").forEach((b) => b.click())`))
	x.is(charts, 1)
	x.is(`typeof window.hacked`, "undefined")
	x.is(`document.images.length + document.querySelectorAll("b").length`, 0)
	for _, name := range names {
		x.is(fmt.Sprintf(`Array.from(document.querySelectorAll(".layers tbody th"), (e) => e.textContent).includes(%q)`, name), true)
	}
}

func TestFourHundredLayersOpenAtOnce(t *testing.T) {
	page := inspected(t, modules(58))
	if info, err := os.Stat(page); err != nil || info.Size() > 500_000 {
		t.Errorf("the page of 406 layers has %d bytes, want at most 500,000 (%v)", info.Size(), err)
	}
	x := open(t, page)
	x.is(rows, 406)
	x.is(`document.querySelectorAll(".heat td[data-i]").length`, 812)
	x.do(chromedp.Click(fmt.Sprintf(head, "σ1")))
	x.is(firstName, "model.layers.57.mlp.down_proj")
}

func TestEveryPageFitsEveryScreen(t *testing.T) {
	dir := t.TempDir()
	demo, err := filepath.Abs("../../testdata/demo")
	if err != nil {
		t.Fatal(err)
	}
	base, adapter := filepath.Join(demo, "base"), filepath.Join(demo, "adapter-r8")
	loratool(t, dir, "inspect", adapter, "--html", "inspect.html")
	loratool(t, dir, "merge", base, adapter, "-o", "merged", "--undo", "--html", "merge.html")
	loratool(t, dir, "extract", base, "merged", "-o", "extracted.lora", "--rank", "4", "--html", "extract.html")
	loratool(t, dir, "resize", adapter, "-o", "resized.lora", "--energy", "0.9", "--html", "resize.html")
	loratool(t, dir, "combine", adapter, "resized.lora", "-o", "combined.lora", "--html", "combine.html")
	loratool(t, dir, "diff", adapter, "resized.lora", "--html", "diff.html")
	loratool(t, dir, "diff", base, "merged", "--html", "checkpoints.html")
	loratool(t, dir, "diff", adapter, "resized.lora", "combined.lora", "extracted.lora", "--html", "pairs.html")
	loratool(t, dir, "diff", base, "merged", adapter, "--html", "change.html")
	loratool(t, dir, "swap", "merged", "--remove", adapter, "--add", "resized.lora", "-o", "swapped", "--html", "swap.html")
	loratool(t, dir, "unmerge", "merged", adapter, "-o", "restored", "--html", "unmerge.html")
	loratool(t, dir, "audit", base, "merged", adapter, "--html", "audit.html")
	loratool(t, dir, "audit", base, "merged", "--html", "unclaimed.html")
	loratool(t, dir, "inspect", "merged", "--html", "checkpoint.html")
	loratool(t, dir, "inspect", "merged.undo", "--html", "undo.html")
	grounds := map[string]string{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}
	for _, name := range []string{"inspect", "merge", "extract", "resize", "combine", "diff", "checkpoints", "pairs", "change", "audit", "unclaimed", "swap", "unmerge", "checkpoint", "undo"} {
		t.Run(name, func(t *testing.T) {
			x := open(t, filepath.Join(dir, name+".html"))
			x.is(`document.querySelectorAll(".heat td[data-i]").length > 20`, true)
			x.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(".layers tbody button")?.click()`))
			for scheme, ground := range grounds {
				command(x, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
				x.is(`getComputedStyle(document.body).backgroundColor`, ground)
				for _, width := range []int64{360, 1280} {
					command(x, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 740, DeviceScaleFactor: 2, Mobile: width < 600})
					x.is(fmt.Sprint(isWide, ` ? "too wide" : innerWidth`), width)
				}
			}
		})
	}
}

func TestADiffShowsSimilarities(t *testing.T) {
	dir := t.TempDir()
	writeAdapter(t, filepath.Join(dir, "a"), modules(3), 8)
	writeAdapter(t, filepath.Join(dir, "b"), modules(3), 4)
	loratool(t, dir, "diff", "a", "b", "--html", "page.html")
	x := open(t, filepath.Join(dir, "page.html"))
	x.do(chromedp.Click(chromedp.CSS(`.layers tbody th button`)))
	x.is(`document.querySelectorAll("#chart .heat tbody td").length`, 32)
	x.is(`Array.from(document.querySelectorAll("#chart .heat tbody td"), (e) => e.textContent).join(" ")`,
		strings.TrimSpace(strings.Repeat("1.00 ", 32))) // each space contains the smaller one
}
