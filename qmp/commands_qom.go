package qmp

import "context"

// QOMGet reads a property of an object into out.
func (c Commands) QOMGet(ctx context.Context, path, property string, out any) error {
	return c.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, out)
}

// A QOMProperty is one element of the answer to qom-list.
type QOMProperty struct {
	Name string `json:"name"`
	// Type is the property's: "bool", or "child<virtio-blk-pci>" for an object.
	Type string `json:"type"`
}

// QOMList lists the properties of an object, and the objects in it.
func (c Commands) QOMList(ctx context.Context, path string) ([]QOMProperty, error) {
	return query[[]QOMProperty](ctx, c, "qom-list", map[string]string{"path": path})
}

// QOMListTypes lists the types that implement another, abstract ones left out.
func (c Commands) QOMListTypes(ctx context.Context, implements string) ([]string, error) {
	return queryNames(ctx, c, "qom-list-types", map[string]any{"implements": implements, "abstract": false})
}

// QOMListProperties lists the properties of a type.
func (c Commands) QOMListProperties(ctx context.Context, typename string) ([]string, error) {
	return queryNames(ctx, c, "qom-list-properties", map[string]string{"typename": typename})
}

// DeviceListProperties lists the properties of a device type.
func (c Commands) DeviceListProperties(ctx context.Context, typename string) ([]string, error) {
	return queryNames(ctx, c, "device-list-properties", map[string]string{"typename": typename})
}

// queryNames runs a command that returns a list of things with names.
func queryNames(ctx context.Context, c Executor, command string, args any) ([]string, error) {
	list, err := query[[]struct {
		Name string `json:"name"`
	}](ctx, c, command, args)
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = n.Name
	}
	return out, err
}
