// csrc/dpt/scenes/render.cpp -- rays through a scene: visibility, textures, light, camera.
#include <algorithm>
#include <limits>
#include <optional>

#include "dpt/scenes/scene.h"

namespace dpt::scenes {
namespace {

constexpr float kNear = 0.02F;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// --- noise ---

// std::floor and std::lerp are calls where the processor's rounding is not known at compile time.
int32_t whole(float x) {
  const auto i = static_cast<int32_t>(x);
  return static_cast<float>(i) > x ? i - 1 : i;
}
float between(float a, float b, float t) { return a + t * (b - a); }

uint32_t hash(uint32_t x) {  // Wellons, "lowbias32"
  x = (x ^ (x >> 16)) * 0x7feb352dU;
  x = (x ^ (x >> 15)) * 0x846ca68bU;
  return x ^ (x >> 16);
}

float lattice(int32_t x, uint32_t base) {
  return static_cast<float>(hash(static_cast<uint32_t>(x) + base) >> 8) * 0x1p-24F;
}

// In [0, 1], smooth, from random values at whole numbers.
float noise(Vec p, uint32_t seed) {
  const int32_t x = whole(p.x), y = whole(p.y), z = whole(p.z);
  const auto ease = [](float t) { return t * t * (3 - 2 * t); };
  const float tx = ease(p.x - static_cast<float>(x)), ty = ease(p.y - static_cast<float>(y)),
              tz = ease(p.z - static_cast<float>(z));
  const auto row = [&](int32_t j, int32_t k) {
    const uint32_t base = hash(static_cast<uint32_t>(j) + hash(static_cast<uint32_t>(k) + seed));
    return between(lattice(x, base), lattice(x + 1, base), tx);
  };
  return between(between(row(y, z), row(y + 1, z), ty),
                 between(row(y, z + 1), row(y + 1, z + 1), ty), tz);
}

float turbulence(Vec p, uint32_t seed) {
  float sum = 0, weight = 0.5F;
  for (uint32_t octave = 0; octave < 4; ++octave) {
    sum += weight * noise(p, seed + octave);
    p = 2.03F * p;
    weight *= 0.5F;
  }
  return sum / 0.9375F;
}

// --- textures: colours in space ---

Vec color_at(const Material& material, Vec p) {
  p = material.scale * p;
  const uint32_t seed = material.seed;
  const auto odd = [](float x) { return (whole(x) & 1) != 0; };
  float t = 0;
  switch (material.texture) {
    case Texture::kPlain:
      t = 0.15F * turbulence(p, seed);
      break;
    case Texture::kNoise:
      t = turbulence(p, seed);
      break;
    case Texture::kChecker:
      t = odd(p.x + 0.01F) != (odd(p.y + 0.01F) != odd(p.z + 0.01F)) ? 1 : 0;
      break;
    case Texture::kStripes:
      t = odd(2 * (p.x + 0.3F * p.y + 0.2F * p.z)) ? 1 : 0;
      break;
    case Texture::kSpots:
      t = noise(2 * p, seed) > 0.62F ? 1 : 0;
      break;
    case Texture::kWood: {
      const float ring = 6 * std::sqrt(p.x * p.x + p.z * p.z) + 3 * turbulence(p, seed);
      t = ring - static_cast<float>(whole(ring));
      break;
    }
    case Texture::kBricks: {
      const int32_t row = whole(3 * p.y);
      const float along = 1.5F * (p.x + p.z) + (row & 1 ? 0.5F : 0);
      const float u = along - static_cast<float>(whole(along)),
                  v = 3 * p.y - static_cast<float>(row);
      const uint32_t brick = hash(static_cast<uint32_t>(row) + seed);
      t = u < 0.06F || v < 0.1F ? 1 : 0.35F * lattice(whole(along), brick);
      break;
    }
    case Texture::kPatches: {  // print and labels: rectangles of rectangles
      const float bend = noise(p, seed);
      const Vec coarse = p + Vec{bend, bend, bend}, fine = 3 * p;
      const auto cell = [&](Vec q, uint32_t base) {
        return lattice(whole(q.x), hash(static_cast<uint32_t>(whole(q.y)) +
                                        hash(static_cast<uint32_t>(whole(q.z)) + base)));
      };
      t = cell(coarse, seed);
      if (t > 0.5F) t = between(t, cell(fine, seed + 1), 0.7F);
      break;
    }
  }
  const float grain = 0.9F + 0.2F * noise(9 * p, seed + 77);
  return grain * mix(material.color, material.second, t);
}

// --- rays ---

struct Hit {
  float t;
  Vec normal;  // of the unit shape
};

Vec divide(Vec a, Vec b) { return {a.x / b.x, a.y / b.y, a.z / b.z}; }

// Where the ray enters the box, or leaves the room that it starts in.
std::optional<Hit> hit_box(Vec o, Vec d, bool inside) {
  const float origin[3] = {o.x, o.y, o.z}, way[3] = {d.x, d.y, d.z};
  float enter = -kInfinity, leave = kInfinity;
  int enter_axis = 0, leave_axis = 0;
  for (int i = 0; i < 3; ++i) {
    if (way[i] == 0) {
      if (std::abs(origin[i]) > 1) return std::nullopt;
      continue;
    }
    const float a = (-1 - origin[i]) / way[i], b = (1 - origin[i]) / way[i];
    if (std::min(a, b) > enter) {
      enter = std::min(a, b);
      enter_axis = i;
    }
    if (std::max(a, b) < leave) {
      leave = std::max(a, b);
      leave_axis = i;
    }
  }
  const float t = inside ? leave : enter;
  if (enter > leave || t <= 0) return std::nullopt;
  const int axis = inside ? leave_axis : enter_axis;
  const float side = way[axis] > 0 ? -1 : 1;
  return Hit{t, {axis == 0 ? side : 0, axis == 1 ? side : 0, axis == 2 ? side : 0}};
}

// The nearer solution of a t^2 + 2 b t + c = 0.
std::optional<float> first_root(float a, float b, float c) {
  const float discriminant = b * b - a * c;
  if (discriminant <= 0 || a == 0) return std::nullopt;
  return (-b - std::sqrt(discriminant)) / a;
}

std::optional<Hit> hit_ball(Vec o, Vec d) {
  const auto t = first_root(dot(d, d), dot(o, d), dot(o, o) - 1);
  if (!t || *t <= 0) return std::nullopt;
  return Hit{*t, o + *t * d};
}

// About the y axis, with caps.
std::optional<Hit> hit_cylinder(Vec o, Vec d) {
  std::optional<Hit> hit;
  const auto side =
      first_root(d.x * d.x + d.z * d.z, o.x * d.x + o.z * d.z, o.x * o.x + o.z * o.z - 1);
  if (side && *side > 0 && std::abs(o.y + *side * d.y) <= 1) {
    const Vec p = o + *side * d;
    hit = Hit{*side, {p.x, 0, p.z}};
  }
  if (d.y != 0) {
    const float cap = d.y > 0 ? -1 : 1, t = (cap - o.y) / d.y;
    const Vec p = o + t * d;
    if (t > 0 && p.x * p.x + p.z * p.z <= 1 && (!hit || t < hit->t)) hit = Hit{t, {0, cap, 0}};
  }
  return hit;
}

std::optional<Hit> intersect(const Object& object, Vec origin, Vec direction) {
  const Vec o = divide(transposed(object.axes, origin - object.centre), object.size);
  const Vec d = divide(transposed(object.axes, direction), object.size);
  switch (object.shape) {
    case Shape::kBox:
      return hit_box(o, d, false);
    case Shape::kRoom:
      return hit_box(o, d, true);
    case Shape::kEllipsoid:
      return hit_ball(o, d);
    case Shape::kCylinder:
      return hit_cylinder(o, d);
  }
  return std::nullopt;
}

// Whether something stands between a point and the light.
bool in_shadow(const Scene& scene, Vec point, Vec to_light, float distance) {
  for (const Object& object : scene.objects) {
    if (object.shape == Shape::kRoom) continue;
    // Far from the ray: the sphere around it is not met.
    const Vec to_centre = object.centre - point;
    const float along = dot(to_centre, to_light), radius = length(object.size);
    if (dot(to_centre, to_centre) - along * along > radius * radius) continue;
    const auto hit = intersect(object, point, to_light);
    if (hit && hit->t < distance) return true;
  }
  return false;
}

// --- the image ---

// The nearest object in a pixel.
struct Seen {
  float depth = kInfinity;
  const Object* object = nullptr;
  Vec normal;
};

struct Camera {
  const Scene& scene;
  int64_t height, width;

  // Its third entry is 1 in the camera's axes, so that the ray's parameter is depth.
  Vec ray(int64_t row, int64_t column) const {
    const float scale = 1 / (scene.focal * static_cast<float>(width));
    return {(static_cast<float>(column) + 0.5F - static_cast<float>(width) / 2) * scale,
            (static_cast<float>(row) + 0.5F - static_cast<float>(height) / 2) * scale, 1};
  }
};

struct Range {
  int64_t begin, end;
};

// Columns (or rows) in which a sphere at `offset` to the side and `depth` ahead can be seen.
Range range(float offset, float depth, float radius, float focal, int64_t size) {
  if (depth - radius < kNear) return {0, size};
  const auto edge = [&](float x) {
    return (x > 0) == (x > offset) ? x / (depth - radius) : x / (depth + radius);
  };
  const auto half = static_cast<float>(size) / 2;
  const float low = half + focal * edge(offset - radius),
              high = half + focal * edge(offset + radius);
  const auto limit = static_cast<float>(size);
  return {static_cast<int64_t>(std::clamp(std::floor(low) - 1, 0.0F, limit)),
          static_cast<int64_t>(std::clamp(std::ceil(high) + 1, 0.0F, limit))};
}

void draw(const Camera& camera, const Object& object, std::vector<Seen>& seen) {
  const Scene& scene = camera.scene;
  const Vec centre = transposed(scene.view, object.centre - scene.camera);
  const float radius = length(object.size);
  if (centre.z + radius < kNear) return;
  const float focal = scene.focal * static_cast<float>(camera.width);
  const bool room = object.shape == Shape::kRoom;
  const Range rows =
      room ? Range{0, camera.height} : range(centre.y, centre.z, radius, focal, camera.height);
  const Range columns =
      room ? Range{0, camera.width} : range(centre.x, centre.z, radius, focal, camera.width);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const auto hit = intersect(object, scene.camera, scene.view * camera.ray(row, column));
      Seen& pixel = seen[row * camera.width + column];
      if (hit && hit->t > kNear && hit->t < pixel.depth) pixel = {hit->t, &object, hit->normal};
    }
  }
}

struct Surface {
  Label label;
  const Material& material;
};

// Of a room it depends on which way the surface looks.
Surface surface(const Object& object, Vec normal) {
  if (object.shape != Shape::kRoom) return {object.label, object.material};
  if (normal.y < -0.5F) return {kFloor, object.material};
  if (normal.y > 0.5F) return {kCeiling, object.ceiling};
  return {kWall, object.walls};
}

Vec lit(const Scene& scene, const Material& material, Vec color, Vec point, Vec normal,
        Vec to_eye) {
  Vec light = scene.ambient * color;
  for (const Light& lamp : scene.lights) {
    Vec to_light = lamp.infinite ? lamp.position : lamp.position - point;
    const float distance = lamp.infinite ? kInfinity : length(to_light);
    to_light = normalized(to_light);
    const float facing = dot(normal, to_light);
    if (facing <= 0 || in_shadow(scene, point + 1e-3F * normal, to_light, distance)) continue;
    const float strength = lamp.infinite ? 1 : 3 / (1 + distance * distance);
    const float gleam =
        material.shine > 0
            ? material.shine *
                  std::pow(std::max(0.0F, dot(normal, normalized(to_light + to_eye))), 30.0F)
            : 0;
    light = light + strength * (lamp.color * (facing * color + Vec{gleam, gleam, gleam}));
  }
  return light;
}

}  // namespace

void render(const Scene& scene, int64_t height, int64_t width, uint64_t seed, uint8_t* image,
            float* depth, float* normals, uint8_t* labels) {
  const Camera camera{scene, height, width};
  std::vector<Seen> seen(height * width);
  for (const Object& object : scene.objects) draw(camera, object, seen);

  Random random(seed);
  for (int64_t row = 0; row < height; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const int64_t i = row * width + column;
      const Seen& pixel = seen[i];
      const Vec ray = scene.view * camera.ray(row, column);
      Vec color, normal;
      depth[i] = pixel.depth;
      if (pixel.object == nullptr) {
        const Vec up = normalized(ray);
        color = mix(scene.horizon, scene.zenith, std::clamp(-2 * up.y, 0.0F, 1.0F));
        color = mix(color, {1, 1, 1}, 0.6F * turbulence(4 * up, 5) * turbulence(9 * up, 6));
        labels[i] = kSky;
      } else {
        const Object& object = *pixel.object;
        const Vec world = normalized(object.axes * divide(pixel.normal, object.size));
        const Vec point = scene.camera + pixel.depth * ray;
        const auto [label, material] = surface(object, world);
        const Vec local = transposed(object.axes, point - object.centre);
        color =
            lit(scene, material, color_at(material, local), point, world, -1.0F * normalized(ray));
        normal = transposed(scene.view, world);
        labels[i] = label;
      }
      const float values[3] = {color.x, color.y, color.z}, axes[3] = {normal.x, normal.y, normal.z};
      for (int64_t c = 0; c < 3; ++c) {
        const float grain = scene.noise * (random.uniform(-1, 1) + random.uniform(-1, 1));
        const float bright = std::pow(std::max(0.0F, scene.exposure * values[c]), 1 / 2.2F) + grain;
        image[3 * i + c] = static_cast<uint8_t>(255 * std::clamp(bright, 0.0F, 1.0F) + 0.5F);
        normals[3 * i + c] = axes[c];
      }
    }
  }
}

}  // namespace dpt::scenes
