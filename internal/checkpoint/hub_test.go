package checkpoint

import "testing"

func TestTheHubsCacheNamesRepositoryAndCommit(t *testing.T) {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	for path, want := range map[string][2]string{
		"/c/hub/models--meta-llama--Llama-3.2-1B/snapshots/" + commit: {"meta-llama/Llama-3.2-1B", commit},
		"models--gpt2/snapshots/" + commit + "/":                      {"gpt2", commit},
		"/c/models--a--b/snapshots/" + commit + "/model.safetensors":  {"a/b", commit},
		"/c/models--a--b/snapshots/main":                              {},
		"/c/models--a--b":                                             {},
		"/c/datasets--a--b/snapshots/" + commit:                       {},
		"":                                                            {},
	} {
		name, revision := (&Checkpoint{Path: path}).Repository()
		if got := [2]string{name, revision}; got != want {
			t.Errorf("the repository of %q is %q, want %q", path, got, want)
		}
	}
}
