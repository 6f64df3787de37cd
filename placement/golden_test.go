package placement

// What the hashes of TestHashesAreGolden gave when the format was fixed. They find the data of
// every cluster, so a change here is a change of the format.
const (
	goldenA uint32 = 3191
	goldenB uint32 = 3585
	goldenC uint32 = 714
	goldenD uint32 = 3390
	goldenE uint32 = 2070
	goldenF uint32 = 957
	goldenG uint32 = 3521
)

var (
	goldenH = []int{9, 2, 8, 3, 4, 10, 11, 1, 0, 6, 7}
	goldenI = []int{3, 5}
)
