package architecture

import (
	"slices"
	"strings"
	"testing"
)

// table returns a table by its name.
func table(t *testing.T, name string) *Table {
	t.Helper()
	for _, tab := range Tables() {
		if tab.Name == name {
			return tab
		}
	}
	t.Fatalf("no table %q", name)
	return nil
}

// show writes parts as a table does.
func show(parts []Part) string {
	var all []string
	for _, p := range parts {
		s := p.Module
		if p.Shares != 1 {
			s += "[" + string(rune('0'+p.Share)) + "/" + string(rune('0'+p.Shares)) + "]"
		}
		if p.Square {
			s += ":n"
		}
		all = append(all, s)
	}
	return strings.Join(all, " + ")
}

func TestPartsOfAModule(t *testing.T) {
	for _, c := range []struct{ table, module, want string }{
		{"flux", "img_in", "x_embedder"},
		{"flux", "x_embedder", "x_embedder"},
		{"flux", "double_blocks.7.img_attn.qkv",
			"transformer_blocks.7.attn.to_q + transformer_blocks.7.attn.to_k + " +
				"transformer_blocks.7.attn.to_v"},
		{"flux", "single_blocks.37.linear1",
			"single_transformer_blocks.37.attn.to_q:n + single_transformer_blocks.37.attn.to_k:n + " +
				"single_transformer_blocks.37.attn.to_v:n + single_transformer_blocks.37.proj_mlp"},
		{"flux", "single_transformer_blocks.37.attn.to_k", "single_transformer_blocks.37.attn.to_k:n"},
		{"flux", "final_layer.adaLN_modulation.1", "norm_out.linear[2/2] + norm_out.linear[1/2]"},
		{"flux", "norm_out.linear", "norm_out.linear[1/2] + norm_out.linear[2/2]"},
		{"flux", "double_blocks.07.img_attn.qkv", ""},
		{"flux", "double_blocks.#.img_attn.qkv", ""},
		{"flux", "double_blocks.7.img_attn", ""},
		{"flux", "transformer.x_embedder", ""},
		{"hunyuan_video", "double_blocks.0.txt_attn_qkv", "transformer_blocks.0.attn.add_q_proj + " +
			"transformer_blocks.0.attn.add_k_proj + transformer_blocks.0.attn.add_v_proj"},
		{"qwen_image", "transformer_blocks.59.img_mod.1", "transformer_blocks.59.img_mod.1"},
		{"z_image", "final_layer.linear", "all_final_layer.2-1.linear"},
		{"wan", "blocks.39.cross_attn.k_img", "blocks.39.attn2.add_k_proj"},
		{"clip", "encoder.layers.3.mlp.fc1", "text_model.encoder.layers.3.mlp.fc1"},
		{"clip", "text_model.encoder.layers.3.mlp.fc1", "text_model.encoder.layers.3.mlp.fc1"},
		{"open_clip", "transformer.resblocks.3.attn.in_proj",
			"text_model.encoder.layers.3.self_attn.q_proj + " +
				"text_model.encoder.layers.3.self_attn.k_proj + " +
				"text_model.encoder.layers.3.self_attn.v_proj"},
		{"sd1", "input_blocks.8.1.transformer_blocks.0.attn1.to_q",
			"down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q"},
		{"sd1", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"},
		{"sdxl", "output_blocks.0.1.transformer_blocks.9.ff.net.0.proj",
			"up_blocks.0.attentions.0.transformer_blocks.9.ff.net.0.proj"},
	} {
		parts, ok := table(t, c.table).Parts(c.module)
		if got := show(parts); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: Parts(%q) = %q, %v, want %q", c.table, c.module, got, ok, c.want)
		}
	}
}

// TestPartsOfShape: the parts depend on the shape only where the table says so.
func TestPartsOfShape(t *testing.T) {
	const native = "joint_blocks.2.context_block.adaLN_modulation.1"
	const linear = "transformer_blocks.2.norm1_context.linear"
	for _, c := range []struct {
		module        string
		rows, columns uint64
		want          string
	}{
		{native, 12, 2, linear},
		{native, 4, 2, linear + "[2/2]:n + " + linear + "[1/2]:n"},
		{linear, 12, 2, linear},
		{linear, 5, 2, linear},
		{linear, 4, 2, linear + "[1/2]:n + " + linear + "[2/2]:n"},
		{"final_layer.adaLN_modulation.1", 12, 2, "norm_out.linear[2/2] + norm_out.linear[1/2]"},
		{"norm1_context.linear", 4, 2, ""},
	} {
		parts, ok := table(t, "sd3").PartsOfShape(c.module, c.rows, c.columns)
		if got := show(parts); got != c.want || ok != (c.want != "") {
			t.Errorf("PartsOfShape(%q, %d, %d) = %q, %v, want %q",
				c.module, c.rows, c.columns, got, ok, c.want)
		}
	}
}

func TestNativeModuleOfAPart(t *testing.T) {
	for _, c := range []struct {
		table string
		part  Part
		want  string
		i     int
	}{
		{"flux", Part{"transformer_blocks.3.attn.to_v", 1, 1, false}, "double_blocks.3.img_attn.qkv", 2},
		{"flux", Part{"single_transformer_blocks.3.proj_mlp", 1, 1, false}, "single_blocks.3.linear1", 3},
		{"flux", Part{"norm_out.linear", 1, 2, false}, "final_layer.adaLN_modulation.1", 1},
		{"flux", Part{"norm_out.linear", 1, 1, false}, "", 0},
		{"flux", Part{"norm_out.linear", 3, 2, false}, "", 0},
		{"flux", Part{"double_blocks.3.img_attn.qkv", 1, 1, false}, "", 0},
		{"sd3", Part{"transformer_blocks.9.norm1_context.linear", 1, 1, false},
			"joint_blocks.9.context_block.adaLN_modulation.1", 0},
		{"sd3", Part{"transformer_blocks.9.norm1_context.linear", 2, 2, false},
			"joint_blocks.9.context_block.adaLN_modulation.1", 0},
		{"sdxl", Part{"add_embedding.linear_2", 1, 1, false}, "label_emb.0.2", 0},
	} {
		module, i, ok := table(t, c.table).Native(c.part)
		if module != c.want || i != c.i || ok != (c.want != "") {
			t.Errorf("%s: Native(%v) = %q, %d, %v, want %q, %d", c.table, c.part, module, i, ok, c.want, c.i)
		}
	}
}

// TestPartsAndNativeAgree: each part of each native module leads back to the module and its place.
func TestPartsAndNativeAgree(t *testing.T) {
	for _, tab := range Tables() {
		for _, e := range tab.entries() {
			if e.native == nil {
				continue
			}
			module := fill(e.name, []string{"0", "11", "2"})
			parts, ok := tab.Parts(module)
			if !ok {
				t.Errorf("%s: Parts(%q) finds nothing", tab.Name, module)
			}
			for i, p := range parts {
				if got, j, ok := tab.Native(p); got != module || i != j || !ok {
					t.Errorf("%s: Native(%v) = %q, %d, %v, want %q, %d", tab.Name, p, got, j, ok, module, i)
				}
			}
		}
	}
}

// TestEveryNameUnflattens: each name of each table unflattens to itself, and no other name of the
// table has its spelling, with dots or flat, for all the numbers that models have.
func TestEveryNameUnflattens(t *testing.T) {
	for _, tab := range Tables() {
		for _, e := range tab.entries() {
			for _, n := range []string{"0", "1", "2", "3", "4", "11", "23", "37", "59"} {
				module := fill(e.name, []string{n, n, n})
				var found []*entry
				tab.names.walk(strings.Split(module, "."), nil, func(e *entry, _ []string) {
					found = append(found, e)
				})
				if !slices.Equal(found, []*entry{e}) {
					t.Errorf("%s: %q has %d entries, want one", tab.Name, module, len(found))
				}
				flat := Flatten(module)
				if got := tab.Unflatten(flat); !slices.Equal(got, []string{module}) {
					t.Errorf("%s: Unflatten(%q) = %q, want %q", tab.Name, flat, got, module)
				}
			}
		}
	}
}

func TestUnflattenKnowsOnlyItsNames(t *testing.T) {
	for _, flat := range []string{
		"", "_", "img", "double_blocks", "double_blocks_x_img_attn_qkv", "double_blocks_00_img_attn_qkv",
		"double_blocks_#_img_attn_qkv", "double_blocks__0_img_attn_qkv", "double_blocks_0_img_attn_qkv_",
		"double_blocks_99999999999_img_attn_qkv", "double.blocks_0_img_attn_qkv",
	} {
		if got := table(t, "flux").Unflatten(flat); got != nil {
			t.Errorf("Unflatten(%q) = %q, want none", flat, got)
		}
	}
}

func TestParametersOfInProj(t *testing.T) {
	for module, want := range map[string][2]string{
		"out.2":           {"out.2.weight", "out.2.bias"},
		"attn.in_proj":    {"attn.in_proj_weight", "attn.in_proj_bias"},
		"in_proj":         {"in_proj_weight", "in_proj_bias"},
		"mixer.x_in_proj": {"mixer.x_in_proj.weight", "mixer.x_in_proj.bias"},
	} {
		if got := [2]string{Weight(module), Bias(module)}; got != want {
			t.Errorf("parameters of %q = %q, want %q", module, got, want)
		}
	}
}

// entries returns all names of a table.
func (t *Table) entries() []*entry {
	var all []*entry
	var visit func(n *node)
	visit = func(n *node) {
		all = append(all, n.entries...)
		for _, next := range n.next {
			visit(next)
		}
	}
	visit(t.names)
	return all
}
